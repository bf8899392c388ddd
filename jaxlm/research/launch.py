# SPDX-License-Identifier: Apache-2.0
"""Workers: processes of this machine, tasks of a Ray cluster, or jobs of SLURM (through submitit).

Everywhere a worker is one command, `jaxlm research train|evaluate JOB`, that prints JSON lines.  It
dies with what started it and is started again when killed; its runs go on from their checkpoints.  A
cluster's machines share the project's folder and this installation.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxlm.core.errors import ConfigError, RunError
from jaxlm.core.typed import nearest
from jaxlm.research.jobs import Job, write_job

Hear = Callable[[dict[str, Any]], None]  # is called from several threads
Verb = Literal["train", "evaluate"]

MAX_STARTS = 4  # of one job
LOCK = "lock"  # of a folder of jobs
GRACE_S = 30.0  # for a worker that is asked to end
CLUSTERS = ("local", "ray", "slurm")
EXTRAS = {"ray": "ray", "slurm": "submitit"}  # what else must be installed


@dataclasses.dataclass(frozen=True)
class Workers:
    """How many at a time, and where.

    options: for Ray, of each task (num_gpus=1); for SLURM, of submitit (slurm_partition="gpu");
    `cluster` there may also be submitit's "local" or "debug".
    stop:    once it is set, those of this machine end, and no other is started.
    """

    count: int = 1
    where: str = "local"  # of CLUSTERS
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    stop: threading.Event = dataclasses.field(default_factory=threading.Event, compare=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"--workers must be >= 1, got {self.count}")
        if self.where not in CLUSTERS:
            raise ConfigError(f"--on {self.where!r} is unknown; {nearest(self.where, CLUSTERS)}")
        module = EXTRAS.get(self.where)
        if module and importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"--on {self.where} needs {module}: pip install 'jaxlm[{self.where}]'"
            )


def run_jobs(verb: Verb, jobs: Sequence[Job], workers: Workers, hear: Hear, project: Path) -> None:
    """All jobs, at most `workers.count` at a time.

    Raises RunError when a worker reports a mistake, was killed MAX_STARTS times, or was to stop.
    """
    project.mkdir(parents=True, exist_ok=True)
    with _own_folder(project.absolute()) as folder:
        paths = [folder / f"{i}.json" for i in range(len(jobs))]
        for path, job in zip(paths, jobs, strict=True):
            write_job(path, job)
        run = {"local": _on_this_machine, "ray": _on_ray, "slurm": _on_slurm}[workers.where]
        for news in run(verb, paths, workers, hear):
            hear(news)


@contextlib.contextmanager
def _own_folder(project: Path) -> Iterator[Path]:
    """For jobs' files.  Those that killed controllers of this machine left are removed.

    A living controller holds its folder's lock; before it holds it the lock names no machine.
    """
    for lock_path in project.glob(f".jobs.*/{LOCK}"):
        with contextlib.suppress(OSError), open(lock_path, encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.read() == socket.gethostname():
                shutil.rmtree(lock_path.parent)
    with (
        tempfile.TemporaryDirectory(dir=project, prefix=".jobs.") as folder,
        open(Path(folder) / LOCK, "w", encoding="utf-8") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(socket.gethostname())
        lock.flush()
        yield Path(folder)


def _on_this_machine(
    verb: Verb, paths: list[Path], workers: Workers, hear: Hear
) -> Iterator[dict[str, Any]]:
    with concurrent.futures.ThreadPoolExecutor(workers.count) as pool:
        for done in [pool.submit(run_job, verb, path, hear, workers.stop) for path in paths]:
            done.result()
    yield from ()


def _on_ray(
    verb: Verb, paths: list[Path], workers: Workers, hear: Hear
) -> Iterator[dict[str, Any]]:
    """News of a job when it ends.  Ray starts a task again whose process or machine went down."""
    import ray

    if not ray.is_initialized():  # the cluster of RAY_ADDRESS, or one on this machine
        ray.init(log_to_driver=False, include_dashboard=False)
    task = ray.remote(max_retries=MAX_STARTS - 1, **workers.options)(collect)
    folder = os.getcwd()
    todo = list(paths)
    going: list[Any] = []
    while todo or going:
        while todo and len(going) < workers.count:
            going.append(task.remote(verb, todo.pop(0), folder))
        done, going = ray.wait(going)
        try:
            yield from ray.get(done[0])
        except ray.exceptions.RayTaskError as e:
            raise e.as_instanceof_cause() from None
        except ray.exceptions.RayError as e:
            raise RunError(f"a worker stopped: {str(e).splitlines()[0]}") from e


def _on_slurm(
    verb: Verb, paths: list[Path], workers: Workers, hear: Hear
) -> Iterator[dict[str, Any]]:
    """News of a job when it ends.  One that vanished, or ran out of time, is submitted again."""
    import submitit

    options = dict(workers.options)
    executor = submitit.AutoExecutor(paths[0].parent, cluster=options.pop("cluster", "slurm"))
    if options:
        executor.update_parameters(**options)
    run = lambda path: _until_it_ends(executor, submitit, verb, path)
    with concurrent.futures.ThreadPoolExecutor(workers.count) as pool:
        for done in [pool.submit(run, path) for path in paths]:
            yield from done.result()


def _until_it_ends(executor: Any, submitit: Any, verb: Verb, path: Path) -> list[dict[str, Any]]:
    reason = ""
    for _ in range(MAX_STARTS):
        job = executor.submit(collect, verb, path, os.getcwd())
        try:
            found: list[dict[str, Any]] = job.result()
        except submitit.core.utils.FailedJobError as e:
            if "RunError" in str(e):  # its own doing: again would end alike
                raise RunError(str(e).rstrip().splitlines()[-1].partition("RunError: ")[2]) from e
            reason = str(e).splitlines()[0]
        except submitit.core.utils.UncompletedJobError as e:
            reason = str(e).splitlines()[0]
        else:
            return found
    raise RunError(f"a worker stopped: {reason}; the same command goes on from what is finished")


def collect(verb: Verb, path: Path, folder: str) -> list[dict[str, Any]]:
    """On a cluster's machine: runs a job from the controller's folder and gives back its news."""
    os.chdir(folder)
    news: list[dict[str, Any]] = []
    run_job(verb, path, news.append, threading.Event())
    return [line for line in news if "step" not in line]


def run_job(verb: Verb, path: Path, hear: Hear, stop: threading.Event) -> None:
    """One job in a process of this machine, started again while something else kills it."""
    command = [sys.executable, "-m", "jaxlm.cli.main", "research", verb, str(path)]
    command += ["--controller", str(os.getpid())]
    last: collections.deque[str] = collections.deque(maxlen=5)
    for _ in range(MAX_STARTS):
        if stop.is_set():
            break
        worker = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment()
        )
        threading.Thread(target=_end_at, args=(stop, worker), daemon=True).start()
        assert worker.stdout is not None
        for line in worker.stdout:
            if line.startswith("{"):
                hear(json.loads(line))
            else:
                last.append(line.strip())
        code = worker.wait()
        if code == 0 and not stop.is_set():
            return
        if code > 0:  # its own doing: again would end alike
            break
        last.append(f"it was killed by signal {-code}")
    if stop.is_set():
        last.append("it was asked to")
    reason = last[-1].removeprefix("jaxlm: error: ") if last else "it said nothing"
    raise RunError(f"a worker stopped: {reason}; the same command goes on from what is finished")


def _end_at(stop: threading.Event, worker: "subprocess.Popen[str]") -> None:
    """Asks a worker to end once `stop` is set (a run then writes a checkpoint); ends it where it does not."""
    while worker.poll() is None:
        if stop.wait(0.2):
            worker.terminate()
            try:
                worker.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                worker.kill()
            return


def _environment() -> dict[str, str]:
    """Without keys: a worker needs none, and what it trains or writes could tell one."""
    return {k: v for k, v in os.environ.items() if not k.startswith("ANTHROPIC_")}
