# SPDX-License-Identifier: Apache-2.0
"""From arms to a protocol and its runs: pure, but for preparing the data.  No jax here."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig, resolve
from jaxlm.core.errors import ConfigError
from jaxlm.data.prepare import prepare
from jaxlm.research import fingerprint
from jaxlm.research.budget import Budget, check, run_flops
from jaxlm.research.jobs import JobRun, with_seed
from jaxlm.research.patch.diff import patch_id
from jaxlm.research.records import BASELINE, Arm, Protocol, Search, Stage, arm_id, body
from jaxlm.telemetry.registry import METRICS

CURVE_FRACS = (0.25, 0.5)  # of the baseline's updates: with the whole, a curve of three lengths
CURVE_SEEDS = 2
Telling = Callable[[str, float], None] | None


@dataclasses.dataclass(frozen=True)
class Setting:
    """An arm before it is planned: its name, what it changes, and the whole config."""

    name: str
    changes: dict[str, str]
    config: RunConfig
    diff: str | None = None  # of the code, where `changes` name a patch
    is_weaker_allowed: bool = False  # it may be run behind one wall


@dataclasses.dataclass(frozen=True)
class Plan:
    """A protocol and its runs, by (arm, seed)."""

    protocol: Protocol
    runs: dict[tuple[str, int], JobRun]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What the verdicts rest on; fields as in Protocol."""

    metric: str = "eval/bpb"
    smallest_effect: float = 0.0
    margin: float | None = None
    alpha: float = 0.05
    hypothesis: str = ""
    predicted: tuple[float, float, float] | None = None
    budget: Budget | None = None
    any_horizon: bool = False
    promote: tuple[str, ...] = ()
    confirm: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeds:
    """first, first + 1, ...; with `most`, that many at most, and a look after each from `count` on."""

    count: int
    most: int | None = None
    first: int | None = None  # None: the baseline's own

    def of(self, config: RunConfig) -> tuple[int, ...]:
        first = config.train.seed if self.first is None else self.first
        return tuple(range(first, first + (self.most or self.count)))


def plan(
    settings: Sequence[Setting], seeds: Seeds, rules: Rules, project: Path, telling: Telling = None, *,
    stage: Stage = "screen", follows: str | None = None, search: Search | None = None,
) -> Plan:  # fmt: skip
    """Baseline first.  Prepares the data; trains nothing.

    Raises ConfigError for arms that are the same, a metric nobody knows, or a budget too small.
    """
    check_metric(rules.metric)
    if stage != "pilot":
        check_distinct(settings)
    base, has_curve = settings[0].config, stage in ("pilot", "screen")
    curve = _shortened(base) if has_curve else []
    planned = seeds.of(base) if search is None else ()
    protocol = Protocol(
        stage=stage, follows=follows, search=search,
        hypothesis=rules.hypothesis or _hypothesis(settings, rules),
        arms=tuple(_arm(setting) for setting in settings),
        curve=tuple(_arm(setting) for setting in curve),
        seeds=planned,
        first_look=seeds.count if seeds.most else None,
        curve_seeds=planned[:CURVE_SEEDS] if curve else (),
        metric=rules.metric,
        direction="lower" if METRICS[rules.metric].direction == "lower" else "higher",
        smallest_effect=rules.smallest_effect, margin=rules.margin, alpha=rules.alpha,
        flops_per_run={s.name: run_flops(s.config) for s in (*settings, *curve)},
        tokens_per_run={s.name: float(resolve(s.config, 1).total_tokens) for s in (*settings, *curve)},
        budget=rules.budget.amount if rules.budget else None,
        budget_unit=rules.budget.unit if rules.budget else "flops",
        data_id=prepare(base.data, progress=telling).data_id,
        code=fingerprint.training_code(),
        evaluator=fingerprint.evaluator(),
        rules=fingerprint.rules(),
        any_horizon=rules.any_horizon, promote=rules.promote, confirm=rules.confirm,
        predicted=rules.predicted,
    )  # fmt: skip
    if search is None:
        check(protocol)
    configs = {s.name: s.config for s in (*settings, *curve)}
    code = {s.name: (s.diff, s.is_weaker_allowed) for s in (*settings, *curve)}
    runs = {(a, s): job_run(configs[a], s, project, telling, *code[a]) for a, s in protocol.runs}
    return Plan(protocol, runs)


def job_run(
    config: RunConfig, seed: int, project: Path, telling: Telling = None, diff: str | None = None,
    is_weaker_allowed: bool = False,
) -> JobRun:  # fmt: skip
    """The run of a config with a seed, in the directory that its id names."""
    config = with_seed(_bare(config), seed)
    patch = None if diff is None else patch_id(diff)
    run_id = fingerprint.run_id(config, prepare(config.data, progress=telling).data_id, patch)
    directory = project / "runs" / run_id[:16]
    return JobRun(config, run_id, directory, None, diff, is_weaker_allowed)


def check_metric(metric: str) -> None:
    """Raises ConfigError for what is no goal that the evaluator measures."""
    goals = [n for n in METRICS if n.startswith("eval/") and METRICS[n].direction != "none"]
    if metric not in goals:
        raise ConfigError(f"metric {metric!r} is no goal; allowed: {', '.join(sorted(goals))}")


def check_distinct(settings: Sequence[Setting]) -> None:
    """Raises ConfigError for arms that are one config under two names, or a lone baseline."""
    names: dict[str, str] = {}
    for setting in settings:
        # each arm runs with all seeds, whatever its own is
        same = names.setdefault(
            arm_id(with_seed(setting.config, 0).config_id, setting.changes), setting.name
        )
        if same != setting.name:
            raise ConfigError(
                f"arms {same!r} and {setting.name!r} are the same config; nothing was run: "
                "vary a field that changes what is computed"
            )
    if len(settings) < 2:
        raise ConfigError(
            f"only the {BASELINE} is left to run; nothing was run: vary a field to another value"
        )


def check_same_text(settings: Sequence[Setting]) -> None:
    """Raises ConfigError for an arm that would be judged on other validation text than the first."""
    for setting in settings:
        for field, text in _text(setting).items():
            if text != _text(settings[0])[field]:
                raise ConfigError(
                    f"arm {setting.name!r} has another DataConfig.{field}, so another validation text: "
                    "its loss says nothing beside the others'; vary a field that keeps the text"
                )


def _text(setting: Setting) -> dict[str, object]:
    """The fields of DataConfig that choose it."""
    data = setting.config.data
    corpora = [(corpus.name, corpus.source, corpus.text_field) for corpus in data.corpora]
    return {"valid_frac": data.valid_frac, "corpora": corpora}


def dump(plan: Plan) -> str:
    """For people who want to read a protocol before it runs."""
    plain: dict[str, Any] = body(plan.protocol)
    return json.dumps(plain, indent=2)


def _hypothesis(settings: Sequence[Setting], rules: Rules) -> str:
    names = ", ".join(setting.name for setting in settings[1:])
    verb = "lowers" if METRICS[rules.metric].direction == "lower" else "raises"
    if not names:
        return f"how {rules.metric} of the baseline varies"
    if rules.margin is not None:
        return f"{names}: {rules.metric} no worse than by {rules.margin:g}"
    return (
        f"one of {names} {verb} {rules.metric}"
        if len(settings) > 2
        else f"{names} {verb} {rules.metric}"
    )


def _bare(config: RunConfig) -> RunConfig:
    """Without samples, which no verdict needs."""
    train = dataclasses.replace(
        config.train, sample_prompts=(), sample_every=None, profile_steps=None
    )
    return dataclasses.replace(config, train=train)


def _arm(setting: Setting) -> Arm:
    name = arm_id(setting.config.config_id, setting.changes)
    return Arm(name=setting.name, changes=setting.changes, config_id=name)


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
