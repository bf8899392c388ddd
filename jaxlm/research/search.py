# SPDX-License-Identifier: Apache-2.0
"""A policy on real runs: it asks for arms, seeds and fractions of training as it goes.

The protocol fixes policy, ideas, budget and the seed of all draws, so what the policy asks for follows
from the losses, and from nothing else: driven again with the recorded ones (`review_search`) it must ask
for the recorded runs, no more and no fewer, and end in the recorded outcome.  An interrupted search is
driven from its start, and what is recorded is looked up.

A run that is stopped on its way has no metric, only a reading of its own validation; the policy may end
it or let it go on, and the verdict rests on whole runs, judged by the evaluator.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research.budget import Budget, price, run_flops
from jaxlm.research.campaign import Pilot, Question, Stage, conclude, run_pilot
from jaxlm.research.departures import departures
from jaxlm.research.jobs import JobRun
from jaxlm.research.ledger import Record
from jaxlm.research.plan import CURVE_FRACS, CURVE_SEEDS, Plan, Rules, Seeds, Setting, job_run, plan
from jaxlm.research.policies.base import (
    WITHIN_SEED,
    Knowledge,
    Losses,
    Outcome,
    Purse,
    Trial,
    drive,
    tells_late,
)
from jaxlm.research.policies.whole import whole
from jaxlm.research.records import BASELINE, JOIN, Protocol, Review, RunRecord, Search
from jaxlm.research.runner import Means, begin, completed, keep, status, train_and_judge
from jaxlm.research.stats.noise import Noise
from jaxlm.research.stats.shrink import Prior
from jaxlm.telemetry.writer import latest_rows

READINGS = 20  # validations on the way, at which a run may be stopped
PILOT = CURVE_SEEDS * (1 + sum(CURVE_FRACS))  # runs
LEAST = 8  # runs of a search, its confirmation included
SIZE = 3.0  # effects of ideas that do something, in sigmas of a run: that of the public log
Configs = Callable[[frozenset[str], int], RunConfig | None]  # None: ideas that exclude each other
Key = tuple[str, int, int, float]  # arm, seed, scale, fraction


def what_is_known(
    sigma: float | None, df: float, rules: Rules, costs: tuple[float, ...],
    ideas: Sequence[Setting],
) -> dict[str, Any]:  # fmt: skip
    """Of the ideas, before the first run; sizes in the metric's unit.  sigma: between seeds."""
    return {
        "sigma": sigma and WITHIN_SEED * sigma, "df": df, "mean_effect": SIZE * sigma if sigma else Prior().mean_effect,
        "smallest_effect": rules.smallest_effect, "scale_costs": list(costs),
        "late": [idea.name for idea in ideas if tells_late(idea.changes)],
    }  # fmt: skip


def knowledge_of(search: Search) -> Knowledge:
    told = search.knowledge
    return Knowledge(
        noise=Noise(told["sigma"], told["df"]) if told["sigma"] else None,
        prior=Prior(mean_effect=told["mean_effect"]),
        smallest_effect=told["smallest_effect"],
        scale_costs=tuple(told["scale_costs"]),
        late=frozenset(told.get("late", ())),
    )


def budget_of(rules: Rules) -> Budget:
    """Raises ConfigError where there is none: a policy chooses what a budget is spent on."""
    if rules.budget is None:
        raise ConfigError("--policy needs a --budget, such as 40runs, 2e15flops, 1e8tokens or 600s")
    return rules.budget


def search_campaign(question: Question, name: str, configs: Configs, means: Means) -> Stage:
    """Pilot, then policy `name` among the question's arms, for what is left of the budget.

    Raises ConfigError for a budget that does not reach, or a length of training that is not fit.
    """
    draft(question, name, means)  # refuses early
    pilot = run_pilot(question.settings[0], question.rules, means)
    planned = draft(question, name, means, pilot)
    made = run_search(planned.protocol, configs, means)
    return Stage(
        planned.protocol, conclude(planned.protocol, made, means.ledger, review_search), made
    )


def draft(question: Question, name: str, means: Means, pilot: Pilot | None = None) -> Plan:
    """The search as it will be fixed; before the pilot without what only that can tell.

    Raises ConfigError for a budget that does not reach.
    """
    rules, base = question.rules, question.settings[0]
    budget, one = budget_of(rules), run_flops(base.config)
    costs = (1.0, *(run_flops(s.config) / one for s in question.larger[:1]))
    needed = PILOT + LEAST * max(costs)
    runs = _affordable(budget, base, pilot.flops_per_s if pilot else None, needed) - PILOT
    sigma, df = (pilot.sigma(), pilot.finding.df) if pilot else (None, 0)
    search = Search(
        policy=name, seed=base.config.train.seed, budget=round(runs, 2),
        knowledge=what_is_known(sigma, df, rules, costs, question.settings[1:]),
    )  # fmt: skip
    seeds = Seeds(count=0)
    return plan(question.settings, seeds, rules, means.project, stage="search", search=search)


def _affordable(budget: Budget, base: Setting, flops_per_s: float | None, needed: float) -> float:
    """Runs of the baseline; what cannot be told before the pilot, seconds, is taken to suffice."""
    one = price(base.config, budget.unit, flops_per_s)
    if one is None:
        return needed
    if budget.amount < needed * one:
        raise ConfigError(
            f"--budget {budget} is too small: the pilot and the shortest search need "
            f"{needed:.3g} runs, {needed * one:.3g} {budget.unit}"
        )
    return budget.amount / one


def arm_name(arm: frozenset[str]) -> str:
    return JOIN.join(sorted(arm)) or BASELINE


def run_search(protocol: Protocol, configs: Configs, means: Means) -> list[RunRecord]:
    """Trains and judges what the policy asks for; the records of it, in the order of its asking.

    Raises RunError when a worker cannot go on; what is finished stays.
    """
    begin(protocol, means)
    world = _RealRuns(protocol, configs, means)
    _drive(protocol, world.run)
    return list(world.recorded.values())


def review_search(
    protocol: Protocol, runs: Sequence[RunRecord], records: Sequence[Record]
) -> Review:
    """Pure: the policy driven with what was recorded.

    Raises RunError where it would have asked for other runs.
    """
    sign = 1 if protocol.direction == "lower" else -1
    known = {_key(run): run for run in runs}
    asked: set[Key] = set()

    def look_up(trials: list[Trial]) -> Losses:
        keys = [_key_of(trial) for trial in trials]
        asked.update(keys)
        if missing := [key for key in keys if key not in known]:
            raise RunError(f"the policy asks for {_say(missing[0])}, which is not recorded")
        return [_loss(known[key], sign) for key in keys]

    outcome = _drive(protocol, look_up)
    if extra := [key for key in known if key not in asked]:
        raise RunError(f"the policy never asked for {_say(extra[0])}")
    found = departures(protocol, runs, records)
    return Review(
        protocol=protocol.id, is_exploratory=bool(found), departures=tuple(found),
        verdicts=tuple(_verdict(arm.name, outcome, runs, sign) for arm in protocol.arms[1:]),
        claim=_claim(outcome, protocol, sign),
    )  # fmt: skip


def _drive(protocol: Protocol, run: Callable[[list[Trial]], Losses]) -> Outcome:
    search, ideas = protocol.search, [arm.name for arm in protocol.arms[1:]]
    assert search is not None
    known = knowledge_of(search)
    plan = whole(
        search.policy, ideas, search.budget, search.seed, known, has_gate=bool(protocol.promote)
    )
    return drive(plan, run, Purse(search.budget, known.scale_costs))


class _RealRuns:
    """The recorded runs of a search, and how to make those that are missing."""

    def __init__(self, protocol: Protocol, configs: Configs, means: Means) -> None:
        self.protocol, self.configs, self.means = protocol, configs, means
        self.sign = 1 if protocol.direction == "lower" else -1
        records = means.ledger.of_kind("run")
        mine = [RunRecord(**r) for r in records if r["protocol"] == protocol.id]
        self.recorded = {_key(run): run for run in mine}
        self.known = completed(records, protocol.evaluator)

    def run(self, trials: list[Trial]) -> Losses:
        missing = [t for t in dict.fromkeys(trials) if _key_of(t) not in self.recorded]
        jobs = {t: job for t in missing if (job := self._job(t)) is not None}
        furthest: dict[Path, JobRun] = {}
        for job in jobs.values():
            there = furthest.get(job.directory)
            if job.run_id not in self.known and (there is None or _steps(job) > _steps(there)):
                furthest[job.directory] = job
        judged = train_and_judge(list(furthest.values()), self.means)
        for trial in missing:
            record = self._record(trial, jobs.get(trial), judged)
            self.recorded[_key_of(trial)] = keep(record, self.means.ledger)
        return [_loss(self.recorded[_key_of(t)], self.sign) for t in trials]

    def _job(self, trial: Trial) -> JobRun | None:
        config = self.configs(trial.arm, trial.scale)
        if config is None:
            return None
        steps = config.train.num_steps
        every = max(1, steps // READINGS)
        train = dataclasses.replace(config.train, eval_every=every)
        job = job_run(dataclasses.replace(config, train=train), trial.seed, self.means.project)
        until = None if trial.fraction == 1 else step_of(trial.fraction, steps)
        return dataclasses.replace(job, until=until)

    def _record(self, trial: Trial, job: JobRun | None, judged: Mapping[Path, Any]) -> RunRecord:
        arm, fraction = arm_name(trial.arm), trial.fraction
        record = RunRecord(
            protocol=self.protocol.id, arm=arm, seed=trial.seed, run_id="", directory="",
            status="excluded", metric=None, evaluation=None, is_reused=False, fraction=fraction,
            scale=trial.scale,
        )  # fmt: skip
        if job is None:
            return record
        earlier, metric = self.known.get(job.run_id), self.protocol.metric
        directory = self.means.project / earlier["directory"] if earlier else job.directory
        record = dataclasses.replace(
            record, run_id=job.run_id, is_reused=earlier is not None,
            directory=str(directory.relative_to(self.means.project)),
            status="completed" if earlier else status(directory),
        )  # fmt: skip
        if record.status == "diverged":
            return record
        if job.until is not None:
            said = read_at(directory, metric, job.until)
            return dataclasses.replace(record, status="stopped", reading=said)
        found = earlier["evaluation"] if earlier else judged[directory]
        return dataclasses.replace(record, metric=found[metric], evaluation=found)


def step_of(fraction: float, steps: int) -> int:
    """The update after which a run is stopped: one with a validation, or, before the first, any."""
    every = max(1, steps // READINGS)
    return round(fraction * steps / every) * every or max(1, round(fraction * steps))


def read_at(directory: Path, metric: str, step: int) -> float:
    """What a run's own validation said, linear in ln step between two; before the first, the loss of
    the update (nats), which only tells that the run works."""
    rows = [(row["step"], row[metric]) for row in latest_rows(directory, "eval")]
    before = [row for row in rows if row[0] <= step]
    after = [row for row in rows if row[0] >= step]
    if not before or not after:
        train = {row["step"]: row["train/loss_nats"] for row in latest_rows(directory, "train")}
        return float(before[-1][1] if before else train[step])
    (a, low), (b, high) = before[-1], after[0]
    weight = math.log(step / a) / math.log(b / a) if b > a else 0.0
    return float(low + weight * (high - low))


def _steps(job: JobRun) -> int:
    return job.until or job.config.train.num_steps


def _key(run: RunRecord) -> Key:
    return run.arm, run.seed, run.scale, run.fraction


def _key_of(trial: Trial) -> Key:
    return arm_name(trial.arm), trial.seed, trial.scale, trial.fraction


def _say(key: Key) -> str:
    return f"{key[0]} with seed {key[1]} to {key[3]:.0%} at scale {key[2]}"


def _loss(run: RunRecord, sign: int) -> float | None:
    value = run.metric if run.fraction == 1 else run.reading
    return None if value is None else sign * value


def _verdict(idea: str, outcome: Outcome, runs: Sequence[RunRecord], sign: int) -> dict[str, Any]:
    """In the shape of an arm's verdict (review.py); a policy's own estimate has no interval."""
    count = sum(idea in run.arm.split(JOIN) for run in runs)
    kept, effect = idea in outcome.kept, outcome.effects.get(idea)
    decision = "keep" if kept else "discard" if count else "inconclusive"
    reason = "kept" if kept else "not kept" if count else "the budget did not reach for it"
    return {
        "arm": idea, "decision": decision, "effect": None if effect is None else sign * effect,
        "low": None, "high": None, "p_value": None, "noise_floor": None, "n": count, "reason": reason,
    }  # fmt: skip


def _claim(outcome: Outcome, protocol: Protocol, sign: int) -> dict[str, Any]:
    """Effect of all that is kept, in the metric's own direction."""
    ends = sorted(-sign * x for x in outcome.interval) if outcome.interval else (None, None)
    return {
        "arm": arm_name(outcome.kept), "effect": -sign * outcome.claimed_gain, "low": ends[0],
        "high": ends[1], "scale": int(bool(protocol.promote)), "notes": dict(outcome.notes),
    }  # fmt: skip
