# SPDX-License-Identifier: Apache-2.0
"""A question from pilot to claim: each stage a protocol of its own, fixed before its first run.

pilot          the baseline at three lengths: is this one fit for comparisons, how large is the noise
screen         all arms over seeds, paired: keep, discard or inconclusive
gate           what was kept, at a larger scale on other seeds: adopted if it holds there too
confirmation   what is left, on seeds that decided nothing: the only source of a claimed gain
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxlm.core.errors import ConfigError, RunError, UnanswerableError
from jaxlm.research.budget import check, cost, price
from jaxlm.research.earlier import known_noise
from jaxlm.research.ledger import Ledger, Record
from jaxlm.research.plan import CURVE_SEEDS, Plan, Rules, Seeds, Setting, plan
from jaxlm.research.records import BASELINE, Finding, Protocol, Review, RunRecord, body
from jaxlm.research.records import Stage as Name
from jaxlm.research.review import judge_runs, review
from jaxlm.research.runner import Means, execute
from jaxlm.research.stats.noise import check_horizon, pool, sample_size
from jaxlm.telemetry.writer import latest_rows
from jaxlm.train.run_dir import read_json

MAX_SEEDS = 16  # that a pilot may ask for
Judge = Callable[[Protocol, Sequence[RunRecord], Sequence[Record]], Review]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """Arms, the baseline first, and how they are to be compared."""

    settings: Sequence[Setting]
    larger: Sequence[Setting] = ()  # the same arms at the scale at which a keep must hold
    seeds: Seeds | None  # None: as many as the pilot's noise calls for
    rules: Rules


@dataclasses.dataclass(frozen=True)
class Stage:
    """A protocol that was carried out."""

    protocol: Protocol
    review: Review
    runs: Sequence[RunRecord]


@dataclasses.dataclass(frozen=True)
class Pilot:
    """What the pilot found, with what is known of this machine alone."""

    finding: Finding
    runs: Sequence[RunRecord]
    flops_per_s: float | None

    def sigma(self) -> float | None:
        """Of one run, in the metric's unit."""
        noise = pool(_by_arm(self.runs, [r.metric for r in self.runs]).values())
        return noise.sigma if noise else None


class UnfinishedError(ConfigError):
    """What follows the stages that are there cannot be run."""

    def __init__(self, message: str, stages: list[Stage]) -> None:
        super().__init__(message)
        self.stages = stages


def run_campaign(question: Question, means: Means) -> list[Stage]:
    """All stages that the question has and the outcomes call for.

    Raises ConfigError for what cannot be compared or paid, RunError when a worker cannot go on.
    """
    check_campaign(question, question.seeds or Seeds(count=2), means)
    pilot = run_pilot(question.settings[0], question.rules, means)
    seeds = question.seeds or _enough_seeds(question, pilot, means)
    planned = check_campaign(question, seeds, means, pilot.flops_per_s)
    stages = [_conclude(planned, _screen(planned, means), means)]
    settings = question.larger or question.settings
    try:
        if question.larger and _kept(stages[0]):
            stages.append(_next("gate", settings, stages, seeds.count, question, means, pilot))
        if (fresh := question.rules.confirm) and _kept(stages[-1]):
            stages.append(_next("confirmation", settings, stages, fresh, question, means, pilot))
    except ConfigError as e:
        raise UnfinishedError(str(e), stages) from e
    return stages


def check_campaign(
    question: Question, seeds: Seeds, means: Means, flops_per_s: float | None = None
) -> Plan:
    """The screen; raises ConfigError where the budget cannot reach for it and, if it keeps one arm, for
    what follows.  The pilot's runs are among the screen's."""
    rules, larger = question.rules, question.larger
    planned = plan(question.settings, seeds, rules, means.project)
    if rules.budget:
        after = 0.0
        for settings, count in (
            (larger, seeds.count),
            (larger or question.settings, rules.confirm),
        ):
            prices = [price(s.config, rules.budget.unit, flops_per_s) or 0.0 for s in settings]
            after += count * (prices[0] + min(prices[1:])) if settings else 0.0
        check(planned.protocol, flops_per_s, after=after)
    return planned


def run_pilot(baseline: Setting, rules: Rules, means: Means) -> Pilot:
    """The baseline at three lengths, which the screen needs too.

    Raises UnanswerableError for a baseline that does not complete and, unless `rules.any_horizon`,
    for a length of training at which the loss still moves fast.
    """
    fixed = dataclasses.replace(
        rules, budget=None, any_horizon=False, promote=(), confirm=0, hypothesis="", predicted=None,
        smallest_effect=0.0, margin=None,
    )  # fmt: skip
    planned = plan([baseline], Seeds(count=CURVE_SEEDS), fixed, means.project, stage="pilot")
    runs = execute(planned, means)
    failed = [run for run in runs if run.status != "completed"]
    if failed:
        raise UnanswerableError(
            f"{failed[0].arm} {failed[0].status} with seed {failed[0].seed}: nothing can be compared "
            "with it; lower OptimConfig.peak_lr or lengthen OptimConfig.warmup_steps"
        )
    found = judge_pilot(planned.protocol, runs, means)
    means.ledger.append_once("finding", body(found), ("protocol",))
    if found.problem and not rules.any_horizon:
        raise UnanswerableError(
            f"{found.problem}; give TrainConfig.num_steps more, or compare anyway with "
            "`jaxlm ablate --any-horizon` (its verdicts are exploratory)"
        )
    return Pilot(found, runs, _speed(planned.protocol, runs, means))


def judge_pilot(protocol: Protocol, runs: Sequence[RunRecord], means: Means) -> Finding:
    """Noise, pooled over the lengths, and the slope of loss over length; all in nats per token."""
    evaluations = [run.evaluation or {} for run in runs]
    losses = [e["eval/loss_nats"] for e in evaluations]
    noise = pool(_by_arm(runs, losses).values())
    firsts = [_first_loss(means.project / run.directory) for run in runs]
    start = sum(firsts) / len(firsts)
    steps = [float(e["step"]) for e in evaluations]
    sigma, df = (noise.sigma, int(noise.df)) if noise else (None, 0)
    if len(set(steps)) < 2:
        problem = f"{steps[0]:.0f} updates are too few to tell whether the loss still moves fast"
        return Finding(
            protocol=protocol.id, sigma=sigma, df=df, slope=None, fall=None, problem=problem
        )
    found = check_horizon(steps, losses, start)
    return Finding(
        protocol=protocol.id, sigma=sigma, df=df, slope=found.slope,
        fall=found.fall if math.isfinite(found.fall) else None, problem=found.problem,
    )  # fmt: skip


def _first_loss(directory: Path) -> float:
    rows = latest_rows(directory, "train")
    if not rows:
        raise RunError(
            f"{directory} is empty or gone, and the ledger tells of its run; put a copy of it back, or "
            "begin another --project"
        )
    return float(rows[0]["train/loss_nats"])


def _by_arm(runs: Sequence[RunRecord], values: Sequence[float | None]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        if value is not None:
            groups.setdefault(run.arm, []).append(value)
    return groups


def _speed(protocol: Protocol, runs: Sequence[RunRecord], means: Means) -> float | None:
    """FLOPs per second of training, validation on the way included."""
    summaries = [read_json(means.project / run.directory / "summary.json") or {} for run in runs]
    seconds = sum(summary.get("wall_time_s") or 0.0 for summary in summaries)
    total = cost(protocol, [(run.arm, run.seed) for run in runs], "flops")
    return total / seconds if seconds and total else None


def _enough_seeds(question: Question, pilot: Pilot, means: Means) -> Seeds:
    """To find the smallest effect with a power of 80 %: from what earlier arms say of paired noise, else
    from the pilot as if pairing were worth nothing."""
    rules = question.rules
    least = rules.margin or rules.smallest_effect
    draft = plan(
        question.settings, Seeds(count=2), dataclasses.replace(rules, budget=None), means.project
    )
    known = known_noise(list(means.ledger), draft.protocol)
    sigma = pilot.sigma()
    sd = known.sigma if known else math.sqrt(2) * sigma if sigma else None
    needed = sample_size(sd, least, alpha=rules.alpha) if sd else 2
    if needed > MAX_SEEDS:
        raise ConfigError(
            f"to find an effect of {least:g} in {rules.metric} at a noise of {sd:.2g} needs {needed} "
            f"seeds or more (at most {MAX_SEEDS}); give --seeds N, a larger --smallest-effect, or a longer run"
        )
    return Seeds(count=needed)


def _screen(planned: Plan, means: Means) -> list[RunRecord]:
    """All runs; or, where seeds are added as one goes, those of arms that are not settled yet."""
    protocol, look = planned.protocol, planned.protocol.first_look
    if look is None:
        return execute(planned, means)
    later = protocol.seeds[look:]
    runs = execute(planned, means, [key for key in planned.runs if key[1] not in later])
    for seed in later:
        verdicts = judge_runs(protocol, runs, list(means.ledger))
        still = [arm for arm, verdict in verdicts.items() if verdict.decision == "inconclusive"]
        if not still:
            break
        runs += execute(planned, means, [(BASELINE, seed), *((arm, seed) for arm in still)])
    return runs


def _next(
    stage: Name, settings: Sequence[Setting], stages: list[Stage], count: int, question: Question,
    means: Means, pilot: Pilot,
) -> Stage:  # fmt: skip
    """Baseline and what the stage before kept, on seeds that decided nothing about it."""
    before, rules = stages[-1].protocol, question.rules
    arms = [settings[0], *(s for s in settings if s.name in _kept(stages[-1]))]
    known = _runs_until(before, means.ledger)
    first = stages[-1].protocol.seeds[-1] + 1
    while True:
        seeds = Seeds(count=count, first=first)
        planned = plan(arms, seeds, rules, means.project, stage=stage, follows=before.id)
        arms_runs = [(key, run) for key, run in planned.runs.items() if key[0] != BASELINE]
        taken = [seed for (_, seed), run in arms_runs if run.run_id in known]
        if not taken:
            break
        first = max(taken) + 1
    made = [(s.protocol, [(r.arm, r.seed) for r in s.runs]) for s in stages]
    spent = [cost(p, runs, before.budget_unit, pilot.flops_per_s) or 0.0 for p, runs in made]
    check(planned.protocol, pilot.flops_per_s, sum(spent))
    return _conclude(planned, execute(planned, means), means)


def _runs_until(protocol: Protocol, ledger: Ledger) -> set[str]:
    """Ids of all runs on the record when that protocol was reviewed."""
    found: set[str] = set()
    for record in ledger:
        if record.kind == "run":
            found.add(record.body["run_id"])
        if record.kind == "review" and record.body["protocol"] == protocol.id:
            break
    return found


def _conclude(planned: Plan, runs: list[RunRecord], means: Means) -> Stage:
    """Writes the review once."""
    return Stage(planned.protocol, conclude(planned.protocol, runs, means.ledger), runs)


def conclude(
    protocol: Protocol, runs: Sequence[RunRecord], ledger: Ledger, judge: Judge = review
) -> Review:
    """The review that the ledger holds, or that now follows from the runs."""
    told = next((r for r in ledger.of_kind("review") if r["protocol"] == protocol.id), None)
    if told is None:
        found = judge(protocol, runs, list(ledger))
        told = ledger.append_once("review", body(found), ("protocol",))
    return Review(**told | {n: tuple(told[n]) for n in ("departures", "verdicts")})


def _kept(stage: Stage) -> list[str]:
    return [v["arm"] for v in stage.review.verdicts if v["decision"] == "keep"]
