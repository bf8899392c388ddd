# SPDX-License-Identifier: Apache-2.0
"""One protocol from first run to verdicts; the only effects are workers and the ledger.

    plan      arms x seeds -> a protocol and its runs           (pure)
    execute   protocol -> ledger, runs trained, judged, reviewed

Given again it goes on: what the ledger or a finished run directory holds is never done twice, and
records come in the protocol's order, so an interrupted campaign ends with the same ledger.
No jax here: training and judging happen in other processes.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig, resolve
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.data.prepare import prepare
from jaxlm.research import fingerprint
from jaxlm.research.jobs import How, Job, JobRun, by_program, with_seed
from jaxlm.research.launch import Verb, run_jobs
from jaxlm.research.ledger import Ledger
from jaxlm.research.records import BASELINE, Arm, Protocol, Review, RunRecord, body
from jaxlm.telemetry.registry import METRICS
from jaxlm.train.run_dir import read_json

Progress = Callable[[str, float | None, str], None]
CURVE_FRACS = (0.25, 0.5)  # of the baseline's updates: with the whole, a curve of three lengths
CURVE_SEEDS = 2
MAX_TOGETHER = 8  # runs of one program: their states are in memory at once


@dataclasses.dataclass(frozen=True)
class Setting:
    """An arm before it is planned: its name, what it changes, and the whole config."""

    name: str
    changes: dict[str, str]
    config: RunConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """A protocol and its runs, by (arm, seed)."""

    protocol: Protocol
    runs: dict[tuple[str, int], JobRun]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What the verdicts rest on."""

    metric: str = "eval/bpb"
    smallest_effect: float = 0.0
    alpha: float = 0.05
    hypothesis: str = ""


def plan(
    settings: Sequence[Setting],
    num_seeds: int,
    budget_flops: float | None,
    rules: Rules,
    project: Path,
    progress: Callable[[str, float], None] | None = None,
) -> Plan:
    """Baseline first.  Prepares the data; trains nothing.

    Raises ConfigError for arms that are the same, a metric nobody knows, or a budget too small.
    """
    if rules.metric not in METRICS or METRICS[rules.metric].direction == "none":
        known = ", ".join(sorted(n for n in METRICS if n.startswith("eval/") and _is_goal(n)))
        raise ConfigError(f"metric {rules.metric!r} is no goal; allowed: {known}")
    _check_distinct(settings)
    first = settings[0].config.train.seed
    curve = _shortened(settings[0].config)
    costs = {s.name: _flops(s.config) for s in (*settings, *curve)}
    protocol = Protocol(
        hypothesis=rules.hypothesis or f"one of {len(settings) - 1} changes lowers {rules.metric}",
        arms=tuple(_arm(setting) for setting in settings),
        curve=tuple(_arm(setting) for setting in curve),
        seeds=tuple(range(first, first + num_seeds)),
        curve_seeds=tuple(range(first, first + min(num_seeds, CURVE_SEEDS))),
        metric=rules.metric,
        direction="lower" if METRICS[rules.metric].direction == "lower" else "higher",
        smallest_effect=rules.smallest_effect,
        alpha=rules.alpha,
        flops_per_run=costs,
        budget_flops=budget_flops,
        data_id=prepare(settings[0].config.data, progress=progress).data_id,
        code=fingerprint.training_code(),
        evaluator=fingerprint.evaluator(),
    )
    _check_budget(protocol)
    configs = {s.name: _bare(s.config) for s in (*settings, *curve)}
    runs = {}
    for arm, seed in protocol.runs:
        config = with_seed(configs[arm], seed)
        data_id = prepare(config.data, progress=progress).data_id
        run_id = fingerprint.run_id(config, data_id)
        runs[arm, seed] = JobRun(config, run_id, project / "runs" / run_id[:16])
    return Plan(protocol, runs)


def execute(
    plan: Plan, project: Path, approved_by: str, progress: Progress, workers: int, how: How
) -> list[RunRecord]:
    """Trains and judges what is missing; the records of all runs, in the protocol's order.

    Raises RunError when a worker cannot go on; what is finished stays.
    """
    ledger, protocol = Ledger(project / "ledger.jsonl"), plan.protocol
    if protocol.id not in {p["id"] for p in ledger.of_kind("protocol")}:
        ledger.append("protocol", body(protocol))
    if protocol.id not in {a["protocol"] for a in ledger.of_kind("approval")}:
        ledger.append("approval", {"protocol": protocol.id, "by": approved_by})
    recorded = {(r["protocol"], r["arm"], r["seed"]): r for r in ledger.of_kind("run")}
    known = {
        r["run_id"]: r
        for r in recorded.values()
        if r["status"] == "completed" and r["evaluation"]["evaluator"] == protocol.evaluator
    }
    missing = {key: run for key, run in plan.runs.items() if (protocol.id, *key) not in recorded}
    fresh = [run for run in missing.values() if run.run_id not in known]
    evaluations = _train_and_judge(fresh, progress, workers, how)
    records = []
    for (arm, seed), run in plan.runs.items():
        if (protocol.id, arm, seed) in recorded:
            records.append(RunRecord(**recorded[protocol.id, arm, seed]))
            continue
        earlier = known.get(run.run_id)
        found = earlier["evaluation"] if earlier else evaluations.get(run.directory)
        status = earlier["status"] if earlier else _status(run.directory)
        record = RunRecord(
            protocol=protocol.id,
            arm=arm,
            seed=seed,
            run_id=run.run_id,
            directory=str(run.directory.relative_to(project)),
            status=status,
            metric=found[protocol.metric] if found else None,
            evaluation=found,
            is_reused=earlier is not None,
        )
        ledger.append("run", body(record))
        records.append(record)
    return records


def conclude(ledger: Ledger, review: Review) -> None:
    """Writes the review once."""
    if review.protocol not in {r["protocol"] for r in ledger.of_kind("review")}:
        ledger.append("review", body(review))


def _train_and_judge(
    runs: Sequence[JobRun], progress: Progress, workers: int, how: How
) -> dict[Path, dict[str, Any]]:
    """Evaluation by run directory; none for a run that did not complete.

    Raises RunError for a run that the evaluator refuses: it is no result, and no failed run either.
    """
    jobs = [
        Job(tuple(group[i : i + MAX_TOGETHER]), how)
        for group in by_program(runs)
        for i in range(0, len(group), MAX_TOGETHER)
    ]
    steps: dict[str, int] = {}
    total = sum(run.config.train.num_steps for run in runs)
    found: dict[Path, dict[str, Any]] = {}
    refused: list[str] = []

    def hear(news: Mapping[str, Any]) -> None:
        if "step" in news:
            steps[news["run"]] = news["step"]
            done = sum(steps.values())
            progress("train", min(done / total, 0.999), f"{len(runs)} runs, {done:,} of {total:,}")
        elif "evaluation" in news:
            found[Path(news["run"])] = news["evaluation"]
            progress("judge", min(len(found) / len(runs), 0.999), f"{len(found)} of {len(runs)}")
        else:
            refused.append(news["error"])

    if not runs:
        return found
    verbs: tuple[Verb, ...] = ("train", "evaluate")
    for verb in verbs:
        if verb == "evaluate":
            _check_ended(runs)
            jobs = [dataclasses.replace(job, runs=_completed(job.runs)) for job in jobs]
        run_jobs(verb, [job for job in jobs if job.runs], workers, hear)
        progress("train" if verb == "train" else "judge", 1.0, f"{len(runs)} runs")
    if refused:
        raise RunError(f"{refused[0]}; delete that run's directory to train it again")
    return found


def _check_ended(runs: Sequence[JobRun]) -> None:
    """A run that was stopped on its way is neither a result nor a failure: it has yet to go on."""
    for run in runs:
        if _status(run.directory) not in ("completed", "diverged"):
            raise RunError(
                f"{run.directory} was stopped before its end; the same command goes on from there"
            )


def _completed(runs: Sequence[JobRun]) -> tuple[JobRun, ...]:
    return tuple(run for run in runs if _status(run.directory) == "completed")


def _status(directory: Path) -> str:
    return (read_json(directory / "summary.json") or {}).get("status") or "crashed"


def _bare(config: RunConfig) -> RunConfig:
    """Without samples, which no verdict needs."""
    train = dataclasses.replace(config.train, sample_prompts=(), sample_every=None)
    return dataclasses.replace(config, train=train)


def _arm(setting: Setting) -> Arm:
    return Arm(name=setting.name, changes=setting.changes, config_id=setting.config.config_id)


def _shortened(config: RunConfig) -> list[Setting]:
    """The baseline with a part of its updates; warmup stays, where it fits."""
    whole = config.train.num_steps
    found = []
    for steps in sorted({max(2, round(whole * frac)) for frac in CURVE_FRACS} - {whole}):
        warmup = min(config.optim.warmup_steps, steps - 1)
        short = dataclasses.replace(
            config,
            train=dataclasses.replace(config.train, num_steps=steps),
            optim=dataclasses.replace(config.optim, warmup_steps=warmup),
        )
        changes = {"TrainConfig.num_steps": str(steps)}
        found.append(Setting(f"{BASELINE}, {steps} updates", changes, short))
    return found


def _flops(config: RunConfig) -> float:
    resolved = resolve(config, 1)
    return resolved.train_flops_per_token * resolved.total_tokens


def _is_goal(name: str) -> bool:
    return METRICS[name].direction != "none"


def _check_distinct(settings: Sequence[Setting]) -> None:
    names: dict[str, str] = {}
    for setting in settings:
        same = names.setdefault(setting.config.config_id, setting.name)
        if same != setting.name:
            raise ConfigError(
                f"arms {same!r} and {setting.name!r} are the same config; nothing was run: "
                "vary a field that changes what is computed"
            )
    if len(settings) < 2:
        raise ConfigError(
            f"only the {BASELINE} is left to run; nothing was run: vary a field to another value"
        )


def _check_budget(protocol: Protocol) -> None:
    budget, costs = protocol.budget_flops, protocol.flops_per_run
    needed = sum(costs[arm] for arm, _ in protocol.runs)
    if budget is None or needed <= budget:
        return
    one = sum(costs[arm.name] for arm in (*protocol.arms, *protocol.curve))
    raise ConfigError(
        f"--budget {budget:.3g} FLOPs is too small: {len(protocol.runs)} runs need {needed:.3g}, "
        f"with one seed {one:.3g}; take fewer --seeds or arms, or a smaller TrainConfig.num_steps"
    )


def dump(plan: Plan) -> str:
    """For people who want to read a protocol before it runs."""
    return json.dumps(body(plan.protocol), indent=2)
