# SPDX-License-Identifier: Apache-2.0
"""From a protocol's runs to verdicts, in the metric's unit and in compute saved.

Effects are paired by seed and judged by stats/verdict.py.  The exchange rate comes from baselines
of three lengths, each with its whole schedule (stats/exchange.py).  What earlier protocols of the same
length and data say of the noise of paired differences (earlier.py) counts as far as they agree.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxlm.research.departures import departures
from jaxlm.research.earlier import known_noise, p_values
from jaxlm.research.ledger import Record
from jaxlm.research.records import BASELINE, Protocol, Review, RunRecord
from jaxlm.research.stats.discovery import adjusted
from jaxlm.research.stats.exchange import savings
from jaxlm.research.stats.noise import sample_size
from jaxlm.research.stats.verdict import Rules, Verdict, judge

Losses = dict[str, dict[int, float | None]]  # arm -> seed -> metric, less is better


def review(protocol: Protocol, runs: Sequence[RunRecord], records: Sequence[Record]) -> Review:
    """Pure.  records: the ledger's, up to now; `runs` are those of the protocol that were made."""
    verdicts = judge_runs(protocol, runs, records)
    losses = _losses(protocol, runs)
    plain = [_plain(v, protocol, losses) for v in verdicts.values()]
    earlier = p_values(records, protocol, runs)
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
    return judge(arms, BASELINE, rules, known_noise(records, protocol, runs))


def _seeds_needed(protocol: Protocol, verdict: dict[str, Any]) -> int | None:
    """To settle an inconclusive arm whose effect is the one measured, with a power of 80 %.

    None where the t-test's size does not say: with a look after every seed, or an arm that is clear by
    itself but not among so many.
    """
    bound = -protocol.smallest_effect if protocol.margin is None else protocol.margin
    low, high = verdict["low"], verdict["high"]
    if protocol.direction == "higher" and low is not None and high is not None:
        low, high = -high, -low
    is_open = verdict["decision"] == "inconclusive" and verdict["noise_floor"] and low is not None
    if not is_open or protocol.is_sequential or high < bound:
        return None
    sign = 1 if protocol.direction == "lower" else -1
    distance = abs(sign * verdict["effect"] - bound)
    if not distance:
        return None
    needed = sample_size(verdict["noise_floor"], distance, alpha=protocol.alpha)
    return max(needed, verdict["n"] + 1)


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
