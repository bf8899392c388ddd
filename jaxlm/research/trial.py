# SPDX-License-Identifier: Apache-2.0
"""What a campaign came to: the adopted config against the one it began with, larger than ever before.

ladder    both at a few widths, a protocol each, every run with a seed of its own
forecast  from the ladder: the ratio of tokens and both final losses at the largest width; recorded
          before anything is run there
trial     both at the largest width, on fresh seeds
score     tokens that the adopted config takes to the baseline's final loss, as a ratio with its
          interval (stats/tokens.py), and whether each forecast covers what came out
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research.campaign import Stage, conclude
from jaxlm.research.earlier import runs_of
from jaxlm.research.ledger import Record
from jaxlm.research.plan import Plan, Rules, Seeds, Setting, plan
from jaxlm.research.records import (
    BASELINE,
    Forecast,
    Protocol,
    RunRecord,
    Score,
    body,
    protocol_from,
)  # fmt: skip
from jaxlm.research.runner import Means, begin, execute
from jaxlm.research.stats import forecast
from jaxlm.research.stats.tokens import ratio_of, tokens_to
from jaxlm.telemetry.writer import latest_rows

ADOPTED = "adopted"
RATIO = "tokens, adopted over baseline"
EVALUATIONS = 16  # of each run, all on the whole validation text: the curve that is read
Changes = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Width:
    """Baseline and adopted config at one width; `first` and the next seeds are used nowhere else."""

    settings: tuple[Setting, Setting]
    seeds: Seeds


def scaled(config: RunConfig, factor: float) -> Changes:
    """`factor` times as wide, trained for as many times the updates: about its cube in FLOPs.

    Heads keep their width.  Raises ConfigError where a count does not come out whole.
    """
    m = config.model
    wide = {"embed_dim": m.embed_dim, "num_heads": m.num_heads, "ffn_dim": m.ffn_dim}
    wide |= {"num_kv_heads": m.num_kv_heads} if m.num_kv_heads is not None else {}
    wide |= {"expert_ffn_dim": m.expert_ffn_dim} if m.expert_ffn_dim is not None else {}
    counts = {f"ModelConfig.{name}": count for name, count in wide.items()}
    for name, count in counts.items():
        if count * factor != round(count * factor):
            raise ConfigError(
                f"{name}={count} times a width of {factor:g} is no whole number; give other --widths"
            )
    counts["TrainConfig.num_steps"] = config.train.num_steps
    if config.optim.warmup_steps:
        counts["OptimConfig.warmup_steps"] = config.optim.warmup_steps
    return {name: str(max(1, round(count * factor))) for name, count in counts.items()}


def run_trial(widths: Sequence[Width], rules: Rules, means: Means) -> list[Stage]:
    """All widths in turn, the last one after its forecast; what the ledger holds is not done again.

    Raises RunError where a run of either arm did not complete: then nothing can be said.
    """
    plans = [_plan(w, "ladder" if w is not widths[-1] else "trial", rules, means) for w in widths]
    stages = [_carry_out(planned, means) for planned in plans[:-1]]
    trial = plans[-1].protocol
    begin(trial, means)
    told = {f["protocol"] for f in means.ledger.of_kind("forecast")}
    if trial.id not in told:
        made = foretell(trial, [stage.protocol for stage in stages], _records(means), means.project)
        means.ledger.append("forecast", body(made))
    stages.append(_carry_out(plans[-1], means))
    if trial.id not in {s["protocol"] for s in means.ledger.of_kind("score")}:
        means.ledger.append("score", body(score(trial, _records(means), means.project)))
    return stages


def foretell(
    trial: Protocol, ladder: Sequence[Protocol], records: Sequence[Record], project: Path
) -> Forecast:
    """From the ladder's runs alone."""
    compute: list[float] = []
    values: dict[str, list[float]] = {}
    by_width: dict[str, list[float]] = {}
    for protocol in ladder:
        pairs = list(_pairs(protocol, runs_of(protocol, records), project))
        compute += [protocol.flops_per_run[BASELINE]] * len(pairs)
        ratios = [_reached(pair, protocol) for pair in pairs]
        by_width[size(protocol)] = ratios
        values.setdefault(RATIO, []).extend(map(math.log, ratios))
        for arm in (BASELINE, ADOPTED):
            values.setdefault(_final(arm, trial), []).extend(pair["final"][arm] for pair in pairs)
    at, count = trial.flops_per_run[BASELINE], len(trial.seeds)
    expected = {}
    for name, seen in values.items():
        found = dataclasses.asdict(forecast.predict(compute, seen, at, count))
        if name == RATIO:
            found |= {k: math.exp(found[k]) for k in ("median", "low", "high")}
        expected[name] = found
    return Forecast(
        protocol=trial.id,
        rests_on=tuple(p.id for p in ladder),
        expected=expected,
        by_width=by_width,
    )


def size(protocol: Protocol) -> str:
    """Names a width in `Forecast.by_width`; to look up by, for the ledger sorts its keys as text."""
    return f"{protocol.flops_per_run[BASELINE]:.3g} FLOPs"


def score(trial: Protocol, records: Sequence[Record], project: Path) -> Score:
    """From the trial's runs, beside the forecast that the ledger holds."""
    pairs = list(_pairs(trial, runs_of(trial, records), project))
    given = [trial.tokens_per_run[ADOPTED]] * len(pairs)
    tokens = {arm: [pair["tokens"][arm] for pair in pairs] for arm in (ADOPTED, BASELINE)}
    found = ratio_of(tokens[ADOPTED], tokens[BASELINE], given, trial.alpha)
    outcomes = {RATIO: found.ratio}
    for arm in (BASELINE, ADOPTED):
        outcomes[_final(arm, trial)] = sum(pair["final"][arm] for pair in pairs) / len(pairs)
    told = next(r for r in records if r.kind == "forecast" and r.body["protocol"] == trial.id)
    expected = told.body["expected"]
    covered = {k: expected[k]["low"] <= v <= expected[k]["high"] for k, v in outcomes.items()}
    covered[RATIO] &= not found.not_reached
    known = lambda value: value if math.isfinite(value) else None
    for pair in pairs:
        pair["tokens"] = {arm: known(count) for arm, count in pair["tokens"].items()}
    return Score(
        protocol=trial.id, pairs=tuple(pairs), ratio=found.ratio, low=found.low,
        high=known(found.high), not_reached=found.not_reached, outcomes=outcomes, covered=covered,
    )  # fmt: skip


def curve(protocol: Protocol, run: RunRecord, project: Path) -> tuple[list[float], list[float]]:
    """Tokens and validation metric of a run; the last value is the evaluator's, not the run's own."""
    rows = [row for row in latest_rows(project / run.directory, "eval") if protocol.metric in row]
    last = (run.evaluation or {}).get("step")
    if run.metric is None or not rows or rows[-1]["step"] != last:
        raise RunError(f"{run.arm} with seed {run.seed} has no whole curve: {run.status}")
    per_step = protocol.tokens_per_run[run.arm] / last
    values = [float(row[protocol.metric]) for row in rows]
    return [row["step"] * per_step for row in rows], [*values[:-1], run.metric]


def problems(records: Sequence[Record], project: Path, rules: str) -> Iterator[str]:
    """Forecasts and scores drawn anew, where the rules are those of today's code."""
    protocols = {r.body["id"]: protocol_from(r.body) for r in records if r.kind == "protocol"}
    for record in records:
        if record.kind not in ("forecast", "score"):
            continue
        trial, before = protocols[record.body["protocol"]], records[: record.seq]
        if trial.rules != rules:
            continue
        try:
            if record.kind == "score":
                found: Forecast | Score = score(trial, before, project)
            else:
                ladder = [protocols[name] for name in record.body["rests_on"]]
                found = foretell(trial, ladder, before, project)
        except (RunError, ValueError, KeyError, StopIteration) as e:
            yield f"record {record.seq}: {record.kind} cannot be drawn anew: {e}"
            continue
        if body(found) != record.body:
            yield f"record {record.seq}: its {record.kind} does not follow from the runs"


def _records(means: Means) -> list[Record]:
    return list(means.ledger)


def _plan(width: Width, stage: Any, rules: Rules, means: Means) -> Plan:
    settings = [dataclasses.replace(s, config=_often_evaluated(s.config)) for s in width.settings]
    settings[0] = dataclasses.replace(settings[0], changes={})  # as every baseline
    return plan(settings, width.seeds, rules, means.project, stage=stage)


def _often_evaluated(config: RunConfig) -> RunConfig:
    """Operational, so the config's id stays."""
    every = max(1, config.train.num_steps // EVALUATIONS)
    train = dataclasses.replace(config.train, eval_every=every, eval_batches=None)
    return dataclasses.replace(config, train=train)


def _carry_out(planned: Plan, means: Means) -> Stage:
    runs = execute(planned, means)
    return Stage(planned.protocol, conclude(planned.protocol, runs, means.ledger), runs)


def _pairs(
    protocol: Protocol, runs: Sequence[RunRecord], project: Path
) -> Iterator[dict[str, Any]]:
    """By seed: the target, each arm's tokens to it, and each arm's final value."""
    by_key = {(run.arm, run.seed): run for run in runs}
    for seed in protocol.seeds:
        curves = {arm: curve(protocol, by_key[arm, seed], project) for arm in (BASELINE, ADOPTED)}
        target = curves[BASELINE][1][-1]
        yield {
            "seed": seed,
            "target": target,
            "tokens": {arm: tokens_to(*c, target) for arm, c in curves.items()},
            "final": {arm: c[1][-1] for arm, c in curves.items()},
        }


def _reached(pair: dict[str, Any], protocol: Protocol) -> float:
    """The ratio of one pair of the ladder.  An arm that did not arrive says nothing of how far it is."""
    if not math.isfinite(pair["tokens"][ADOPTED]):
        raise RunError(
            f"at {protocol.flops_per_run[BASELINE]:.3g} FLOPs the adopted config does not reach the "
            f"baseline's loss with seed {pair['seed']}: what was adopted does not hold at that size, and "
            "no trial is made"
        )
    return float(pair["tokens"][ADOPTED] / pair["tokens"][BASELINE])


def _final(arm: str, trial: Protocol) -> str:
    return f"final {trial.metric}, {arm}"
