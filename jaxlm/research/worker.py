# SPDX-License-Identifier: Apache-2.0
"""Trains the runs of one job in one process, with one compiled program for each shape.

    in turn    one run after the other; every run is bit for bit what `jaxlm train` makes of it
    together   all in one vmapped program (together.py), which fills an accelerator

Each run has a directory of its own and goes on from its checkpoints, so a killed worker, started
again, loses no more than a killed `jaxlm train`.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import jax

from jaxlm.core.errors import CheckpointError, NonFiniteError, RunError
from jaxlm.data.prepare import prepare
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.research.evaluator import evaluate_run
from jaxlm.research.jobs import Job, JobRun, by_program
from jaxlm.research.together import train_together
from jaxlm.telemetry.display import PlainDisplay
from jaxlm.telemetry.writer import Row
from jaxlm.train.run_dir import read_json
from jaxlm.train.session import run_training
from jaxlm.train.setup import Trainer, build_trainer

MAX_TOGETHER = 8  # runs of one program: their states are in memory at once


class Announcer(PlainDisplay):
    """Tells a controller how far a run is, one JSON line each time; says nothing to people."""

    def __init__(self, directory: Path, out: TextIO) -> None:
        super().__init__(open(os.devnull, "w", encoding="utf-8"))
        self._directory, self._out = directory, out

    def train(self, row: Row) -> None:
        _tell(self._out, run=str(self._directory), step=row["step"])


def train(job: Job, out: TextIO = sys.stdout) -> None:
    """Trains what is not finished.  A run that diverges says so in its summary.json."""
    waiting = [run for run in job.runs if not is_finished(run)]
    for run in waiting:
        if run.diff is not None:
            _train_patched(run, out)
    waiting = [run for run in waiting if run.diff is None]
    how = job.how
    if how == "auto":
        how = "in turn" if jax.default_backend() == "cpu" else "together"
    for runs in by_program(waiting):
        if how == "together":
            quiet = PlainDisplay(open(os.devnull, "w", encoding="utf-8"))
            tell = lambda path, step: _tell(out, run=str(path), step=step)
            for i in range(0, len(runs), MAX_TOGETHER):
                train_together(runs[i : i + MAX_TOGETHER], tell, quiet)
        else:
            _train_in_turn(runs, out)


def _train_in_turn(runs: list[JobRun], out: TextIO) -> None:
    trainer = _trainer(runs[0])
    for run in runs:
        announcer = Announcer(run.directory, out)
        with contextlib.suppress(NonFiniteError):  # its summary says so
            summary = run_training(
                run.config, run.directory, "", announcer, trainer, until=run.until
            )
            if summary["status"] != "completed" and summary["step"] != run.until:  # asked to stop
                return


def _train_patched(run: JobRun, out: TextIO) -> None:
    from jaxlm.research.patch.host import train_patched

    train_patched(run, lambda step: _tell(out, run=str(run.directory), step=step))


def evaluate(job: Job, out: TextIO = sys.stdout) -> None:
    """One JSON line for each run: its evaluation, or why it has none."""
    for run in job.runs:
        if run.diff is not None:
            _judge_patched(run, out)
    for runs in by_program(run for run in job.runs if run.diff is None):
        trainer = _trainer(runs[0])
        for run in runs:
            try:
                found = evaluate_run(run.directory, run.run_id, trainer)
                _tell(out, run=str(run.directory), evaluation=found)
            except (RunError, CheckpointError) as e:
                _tell(out, run=str(run.directory), error=str(e))


def _judge_patched(run: JobRun, out: TextIO) -> None:
    from jaxlm.research.patch.judge import judge_patched

    try:
        _tell(out, run=str(run.directory), evaluation=judge_patched(run))
    except RunError as e:
        _tell(out, run=str(run.directory), error=f"{run.directory}: {e}")


def is_finished(run: JobRun) -> bool:
    """Completed or diverged, or as far as it was to go: nothing is left to train."""
    summary = read_json(run.directory / "summary.json") or {}
    if summary.get("status") == "preempted" and run.until is not None:
        return bool((summary["step"] or 0) >= run.until)
    return summary.get("status") in ("completed", "diverged")


def _trainer(run: JobRun) -> Trainer:
    data = prepare(run.config.data)
    tokenizer = load_tokenizer(data.tokenizer_path, sha256=data.tokenizer_sha256)
    return build_trainer(run.config, tokenizer.bytes_per_token_V)


def _tell(out: TextIO, **news: Any) -> None:
    print(json.dumps(news), file=out, flush=True)
