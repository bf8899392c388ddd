# SPDX-License-Identifier: Apache-2.0
"""Workers as processes of this machine: started, listened to, started again when killed.

A worker prints JSON lines.  It dies with its controller, so that a controller started anew finds
no run in use.  Standard library only.
"""

import collections
import concurrent.futures
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxlm.core.errors import RunError
from jaxlm.research.jobs import Job, write_job

Hear = Callable[[dict[str, Any]], None]  # is called from several threads
Verb = Literal["train", "evaluate"]

MAX_STARTS = 4  # of one job, whose runs go on from their checkpoints
PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends


def run_jobs(verb: Verb, jobs: Sequence[Job], workers: int, hear: Hear) -> None:
    """All jobs, at most `workers` at a time.

    Raises RunError when a worker reports a mistake, or was killed MAX_STARTS times.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.json" for i in range(len(jobs))]
        for path, job in zip(paths, jobs, strict=True):
            write_job(path, job)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(_run_job, verb, path, hear) for path in paths]:
                done.result()


def _run_job(verb: Verb, path: Path, hear: Hear) -> None:
    command = [sys.executable, "-m", "jaxlm.cli.main", "research", verb, str(path)]
    command += ["--controller", str(os.getpid())]
    last: collections.deque[str] = collections.deque(maxlen=5)
    for _ in range(MAX_STARTS):
        worker = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert worker.stdout is not None
        for line in worker.stdout:
            if line.startswith("{"):
                hear(json.loads(line))
            else:
                last.append(line.strip())
        code = worker.wait()
        if code == 0:
            return
        if code > 0:  # its own doing: again would end alike
            break
        last.append(f"it was killed by signal {-code}")
    reason = last[-1].removeprefix("jaxlm: error: ") if last else "it said nothing"
    raise RunError(f"a worker stopped: {reason}; the same command goes on from what is finished")


def die_with(controller: int) -> None:
    """Called by a worker, so that none goes on in a run directory that a new one will open."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != controller:  # it died before we asked for the signal
        sys.exit(f"process {controller}, which started this worker, has gone")
