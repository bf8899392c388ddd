# SPDX-License-Identifier: Apache-2.0
"""From a protocol's runs to verdicts, in the metric's unit and in compute saved.

Effects are paired by seed and judged by stats/verdict.py.  The exchange rate comes from baselines
of three lengths, each with its whole schedule (stats/exchange.py).  What earlier protocols of the same
length and data say of the noise of paired differences counts as far as they agree (stats/noise.py).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxlm.research.departures import departures
from jaxlm.research.ledger import Record
from jaxlm.research.records import BASELINE, Protocol, Review, RunRecord, protocol_from
from jaxlm.research.stats.discovery import adjusted
from jaxlm.research.stats.exchange import savings
from jaxlm.research.stats.noise import Noise, moderate, sample_size
from jaxlm.research.stats.paired import differences
from jaxlm.research.stats.verdict import Rules, Verdict, judge

Losses = dict[str, dict[int, float | None]]  # arm -> seed -> metric, less is better


def review(protocol: Protocol, runs: Sequence[RunRecord], records: Sequence[Record]) -> Review:
    """Pure.  records: the ledger's, up to now; `runs` are those of the protocol that were made."""
    verdicts = judge_runs(protocol, runs, records)
    losses = _losses(protocol, runs)
    plain = [_plain(v, protocol, losses) for v in verdicts.values()]
    earlier = [v["p_value"] for v in _earlier_verdicts(protocol, records)]
    known = [v["p_value"] for v in plain if v["p_value"] is not None]
    q_values = iter(adjusted([*known, *earlier])[: len(known)])
    for verdict in plain:
        is_known = verdict["p_value"] is not None
        verdict["project_q"] = float(next(q_values)) if is_known else None
        verdict["seeds_needed"] = _seeds_needed(protocol, verdict)
    found = departures(protocol, runs, records)
    return Review(
        protocol=protocol.id,
        is_exploratory=bool(found),
        departures=tuple(found),
        verdicts=tuple(plain),
    )


def judge_runs(
    protocol: Protocol, runs: Sequence[RunRecord], records: Sequence[Record]
) -> dict[str, Verdict]:
    """A verdict for every arm but the baseline, in losses (less is better)."""
    losses = _losses(protocol, runs)
    rules = Rules(
        smallest_effect=protocol.smallest_effect,
        margin=protocol.margin,
        alpha=protocol.alpha,
        test="sequence" if protocol.is_sequential else "t",
    )
    arms = {arm.name: losses[arm.name] for arm in protocol.arms}
    return judge(arms, BASELINE, rules, known_noise(records, protocol))


def known_noise(records: Sequence[Record], protocol: Protocol) -> Noise | None:
    """Of paired differences in earlier protocols that ask the same of the same baseline's length."""
    groups = []
    for record in records:
        if record.kind != "protocol":
            continue
        earlier = protocol_from(record.body)
        if earlier.id == protocol.id:
            break
        same = ("metric", "data_id", "code")
        if any(getattr(earlier, name) != getattr(protocol, name) for name in same):
            continue
        if earlier.flops_per_run[BASELINE] == protocol.flops_per_run[BASELINE]:
            losses = _losses(earlier, runs_of(earlier, records))
            names = {arm.name for arm in earlier.arms} - {BASELINE}
            groups += [list(differences(losses[name], losses[BASELINE])) for name in sorted(names)]
    return moderate(groups)


def runs_of(protocol: Protocol, records: Sequence[Record]) -> list[RunRecord]:
    """A protocol's runs, in the order of the ledger."""
    mine = (r for r in records if r.kind == "run" and r.body["protocol"] == protocol.id)
    return [RunRecord(**record.body) for record in mine]


def _earlier_verdicts(protocol: Protocol, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of other protocols of the project, those with a p-value."""
    reviews = (r.body for r in records if r.kind == "review" and r.body["protocol"] != protocol.id)
    return [v for found in reviews for v in found["verdicts"] if v.get("p_value") is not None]


def _seeds_needed(protocol: Protocol, verdict: dict[str, Any]) -> int | None:
    """To settle an inconclusive arm whose effect is the one measured, with a power of 80 %."""
    if verdict["decision"] != "inconclusive" or not verdict["noise_floor"]:
        return None
    sign = 1 if protocol.direction == "lower" else -1
    bound = -protocol.smallest_effect if protocol.margin is None else protocol.margin
    distance = abs(sign * verdict["effect"] - bound)
    return sample_size(verdict["noise_floor"], distance, alpha=protocol.alpha) if distance else None


def _losses(protocol: Protocol, runs: Sequence[RunRecord]) -> Losses:
    sign = 1 if protocol.direction == "lower" else -1
    losses: Losses = {arm: {} for arm, _ in protocol.runs}
    for run in runs:
        if run.arm in losses:  # a forged ledger may hold any arm
            losses[run.arm][run.seed] = None if run.metric is None else sign * run.metric
    return losses


def _plain(verdict: Verdict, protocol: Protocol, losses: Losses) -> dict[str, Any]:
    """As JSON, None for what is not known; effects in the metric's own direction."""
    plain: dict[str, Any] = dataclasses.asdict(verdict)
    if protocol.direction == "higher":
        plain |= {"effect": -verdict.effect, "low": -verdict.high, "high": -verdict.low}
    plain |= {f"saved_{end}": value for end, value in _saved(verdict, protocol, losses).items()}
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()
    }


def _saved(verdict: Verdict, protocol: Protocol, losses: Losses) -> dict[str, float]:
    """Share of the baseline's FLOPs, with its interval; nothing where the curve says nothing."""
    if not math.isfinite(verdict.effect):
        return {}
    lengths, values = [], []
    for arm, seed in protocol.runs:
        loss = losses[arm].get(seed)
        is_baseline = arm == BASELINE or arm in {a.name for a in protocol.curve}
        if loss is not None and is_baseline and seed in protocol.curve_seeds:
            lengths.append(protocol.flops_per_run[arm])
            values.append(loss)
    whole = protocol.flops_per_run[BASELINE]
    try:
        saving = savings(lengths, values, whole, verdict.effect, (verdict.low, verdict.high))
    except ValueError:  # too few lengths, or a loss that does not fall
        return {}
    cost = protocol.flops_per_run[verdict.arm] / whole  # an arm may cost more than the baseline
    share = lambda value: 1 - cost * (1 - value)
    return {"share": share(saving.share), "low": share(saving.low), "high": share(saving.high)}
