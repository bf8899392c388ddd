# SPDX-License-Identifier: Apache-2.0
"""Trains and judges one run on a cluster's worker, which is killed on its way.

python -m tests.jaxlm.research.on_cluster WHERE OPTIONS RUN_DIR
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from jaxlm.cli.gin_edge import load
from jaxlm.data.prepare import prepare
from jaxlm.research.fingerprint import run_id
from jaxlm.research.jobs import Job, JobRun
from jaxlm.research.launch import Workers, run_jobs


def kill_worker_of(run_dir: Path, project: Path) -> None:
    """As soon as the run has a checkpoint: what a machine that goes down does to it.

    Only a worker whose job lies in this test's own project folder, and what started it: the worker's
    command names both its job and its controller, and dies with the latter.
    """
    while not list(run_dir.glob("checkpoints/*/manifest.json")):
        time.sleep(0.02)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            continue
        is_worker = words[2:5] == ["jaxlm.cli.main", "research", "train"]
        if is_worker and words[5].startswith(f"{project.absolute()}/.jobs."):
            os.kill(int(words[7]), signal.SIGKILL)


def main(where: str, options: str, run_dir: str) -> None:
    config, directory = load(["base.gin"], ["TrainConfig.num_steps=40"]), Path(run_dir)
    run = JobRun(config, run_id(config, prepare(config.data).data_id), directory)
    workers, news = Workers(2, where, json.loads(options)), list[dict[str, Any]]()
    project = Path("project")
    threading.Thread(target=kill_worker_of, args=(directory, project), daemon=True).start()
    run_jobs("train", [Job((run,))], workers, news.append, project)
    run_jobs("evaluate", [Job((run,))], workers, news.append, project)
    print(json.dumps(news[-1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
