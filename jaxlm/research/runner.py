# SPDX-License-Identifier: Apache-2.0
"""Makes a protocol's runs and their records; the only effects are workers and the ledger.

Given again it goes on: what the ledger or a finished run directory holds is never done twice, and
records come in the protocol's order, so an interrupted campaign ends with the same ledger.
No jax here: training and judging happen in other processes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.errors import RunError
from jaxlm.research.jobs import How, Job, JobRun, by_program
from jaxlm.research.launch import Verb, Workers, run_jobs
from jaxlm.research.ledger import Ledger
from jaxlm.research.plan import Plan
from jaxlm.research.records import Protocol, RunRecord, body
from jaxlm.train.run_dir import read_json

Progress = Callable[[str, float | None, str], None]
RUN_KEY = ("protocol", "arm", "seed", "scale", "fraction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Means:
    """Where a project lives and who works on it."""

    project: Path
    progress: Progress
    workers: Workers = dataclasses.field(default_factory=Workers)
    how: How = "auto"
    approved_by: str = "the command's user"

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.project / "ledger.jsonl")


def begin(protocol: Protocol, means: Means) -> None:
    """Fixes a protocol, once: nothing runs before it, nor after a ledger that its head contradicts."""
    means.ledger.check()
    means.ledger.append_once("protocol", body(protocol), ("id",))
    approval = {"protocol": protocol.id, "by": means.approved_by}
    means.ledger.append_once("approval", approval, ("protocol",))


def keep(record: RunRecord, ledger: Ledger) -> RunRecord:
    """The record of that run which the ledger holds from now on."""
    return RunRecord(**ledger.append_once("run", body(record), RUN_KEY))


def execute(
    plan: Plan, means: Means, which: Sequence[tuple[str, int]] | None = None
) -> list[RunRecord]:
    """Trains and judges what is missing; records of `which` runs, all if None, in their order.

    Raises RunError when a worker cannot go on; what is finished stays.
    """
    begin(plan.protocol, means)
    protocol, ledger = plan.protocol, means.ledger
    records = list(ledger.of_kind("run"))
    recorded = {(r["arm"], r["seed"]): r for r in records if r["protocol"] == protocol.id}
    known = completed(records, protocol.evaluator)
    wanted = list(plan.runs) if which is None else list(which)
    missing = [plan.runs[key] for key in wanted if key not in recorded]
    evaluations = train_and_judge([run for run in missing if run.run_id not in known], means)
    found = []
    for arm, seed in wanted:
        if (arm, seed) in recorded:
            found.append(RunRecord(**recorded[arm, seed]))
            continue
        run = plan.runs[arm, seed]
        earlier = known.get(run.run_id)
        evaluation = earlier["evaluation"] if earlier else evaluations.get(run.directory)
        record = RunRecord(
            protocol=protocol.id, arm=arm, seed=seed, run_id=run.run_id,
            directory=str(run.directory.relative_to(means.project)),
            status="completed" if earlier else status(run.directory),
            metric=evaluation[protocol.metric] if evaluation else None,
            evaluation=evaluation, is_reused=earlier is not None,
        )  # fmt: skip
        found.append(keep(record, ledger))
    return found


def completed(records: Sequence[dict[str, Any]], evaluator: str) -> dict[str, dict[str, Any]]:
    """By run id, what this evaluator has judged: it is not trained again."""
    return {
        r["run_id"]: r
        for r in records
        if r["status"] == "completed" and r["evaluation"]["evaluator"] == evaluator
    }


def train_and_judge(runs: Sequence[JobRun], means: Means) -> dict[Path, dict[str, Any]]:
    """Evaluation by run directory; none for a run that did not complete.

    Raises RunError for a run that the evaluator refuses: it is no result, and no failed run either.
    """
    count = means.workers.count
    parts = (group[i::count] for group in by_program(runs) for i in range(count))
    jobs = [Job(tuple(part), means.how) for part in parts if part]
    steps: dict[str, int] = {}
    total = sum(run.until or run.config.train.num_steps for run in runs)
    found: dict[Path, dict[str, Any]] = {}
    refused: list[str] = []

    def hear(news: Mapping[str, Any]) -> None:
        if "step" in news:
            steps[news["run"]] = news["step"]
            done = sum(steps.values())
            share = min(done / total, 0.999)
            means.progress("train", share, f"{len(runs)} runs, {done:,} of {total:,}")
        elif "evaluation" in news:
            found[Path(news["run"])] = news["evaluation"]
            share = min(len(found) / len(runs), 0.999)
            means.progress("judge", share, f"{len(found)} of {len(runs)}")
        else:
            refused.append(news["error"])

    verbs: tuple[Verb, ...] = ("train", "evaluate") if runs else ()
    for verb in verbs:
        if verb == "evaluate":
            _check_ended(runs)
            jobs = [dataclasses.replace(job, runs=_completed(job.runs)) for job in jobs]
        todo = [job for job in jobs if job.runs]
        run_jobs(verb, todo, means.workers, hear, means.project)
        if todo:
            means.progress("train" if verb == "train" else "judge", 1.0, f"{len(runs)} runs")
    if refused:
        raise RunError(f"{refused[0]}; delete that run's directory to train it again")
    return found


def _check_ended(runs: Sequence[JobRun]) -> None:
    """A run that was stopped on its way is neither a result nor a failure: it has yet to go on."""
    for run in runs:
        summary = read_json(run.directory / "summary.json") or {}
        is_there = run.until is not None and (summary.get("step") or 0) >= run.until
        if summary.get("status") not in ("completed", "diverged") and not is_there:
            raise RunError(
                f"{run.directory} was stopped before its end; the same command goes on from there"
            )


def _completed(runs: Sequence[JobRun]) -> tuple[JobRun, ...]:
    return tuple(run for run in runs if status(run.directory) == "completed")


def status(directory: Path) -> str:
    return (read_json(directory / "summary.json") or {}).get("status") or "crashed"
