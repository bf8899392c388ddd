# SPDX-License-Identifier: Apache-2.0
"""From a protocol's runs to verdicts, in the metric's unit and in compute saved.

Effects are paired by seed and judged by stats/verdict.py.  The exchange rate comes from baselines
of three lengths, each with its whole schedule (stats/exchange.py).  The noise of paired differences
is pooled over all earlier protocols of the same length and data in the ledger.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jaxlm.research.ledger import Ledger
from jaxlm.research.records import BASELINE, Protocol, Review, RunRecord, protocol_from
from jaxlm.research.stats.exchange import savings
from jaxlm.research.stats.noise import Noise, pool
from jaxlm.research.stats.paired import differences
from jaxlm.research.stats.verdict import Rules, Verdict, judge
from jaxlm.telemetry.readable import number, percent

Losses = dict[str, dict[int, float | None]]  # arm -> seed -> metric, less is better


def review(protocol: Protocol, runs: Sequence[RunRecord], ledger: Ledger) -> Review:
    """Pure but for reading the ledger's earlier protocols."""
    losses = _losses(protocol, runs)
    arms = {arm.name: losses[arm.name] for arm in protocol.arms}
    rules = Rules(smallest_effect=protocol.smallest_effect, alpha=protocol.alpha)
    verdicts = judge(arms, BASELINE, rules, pooled_noise(ledger, protocol))
    return Review(
        protocol=protocol.id,
        is_exploratory=False,
        verdicts=tuple(_plain(v, protocol, losses) for v in verdicts.values()),
    )


def pooled_noise(ledger: Ledger, protocol: Protocol) -> Noise | None:
    """Of paired differences in earlier protocols that ask the same of the same baseline's length."""
    groups = []
    for plain in ledger.of_kind("protocol"):
        earlier = protocol_from(plain)
        same = ("metric", "data_id", "code")
        if earlier.id == protocol.id:
            break
        if any(getattr(earlier, name) != getattr(protocol, name) for name in same):
            continue
        if earlier.flops_per_run[BASELINE] == protocol.flops_per_run[BASELINE]:
            runs = [RunRecord(**r) for r in ledger.of_kind("run") if r["protocol"] == earlier.id]
            losses = _losses(earlier, runs)
            names = {arm.name for arm in earlier.arms} - {BASELINE}
            groups += [list(differences(losses[name], losses[BASELINE])) for name in sorted(names)]
    return pool(groups)


def _losses(protocol: Protocol, runs: Sequence[RunRecord]) -> Losses:
    sign = 1 if protocol.direction == "lower" else -1
    losses: Losses = {arm: {} for arm, _ in protocol.runs}
    for run in runs:
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


def table(protocol: Protocol, found: Review) -> Iterator[str]:
    """Lines for people: verdict, effect with interval, what it is worth, and what it rests on."""
    unit = protocol.metric
    head = (
        "arm",
        "verdict",
        f"effect, {unit}",
        f"{1 - protocol.alpha:.0%} interval",
        "compute saved",
        "seeds",
    )
    rows = [head, *(_cells(verdict) for verdict in found.verdicts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        yield "  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip()
    yield ""
    for verdict in found.verdicts:
        yield f"{verdict['arm']}: {verdict['reason']}"
    known = [v for v in found.verdicts if v["noise_floor"] is not None]
    if known:
        floors = ", ".join(sorted({f"{v['noise_floor']:.4f}" for v in known}))
        yield f"noise of one paired difference: {floors} ({unit})"
    cost = sum(protocol.flops_per_run[arm] for arm, _ in protocol.runs)
    yield f"cost: {number(cost)}FLOPs in {len(protocol.runs)} runs; protocol {protocol.id[:12]}"


def _cells(verdict: dict[str, Any]) -> tuple[str, ...]:
    known = verdict["low"] is not None
    saved = verdict.get("saved_share")
    between = (
        f" ({percent(verdict['saved_low'])} to {percent(verdict['saved_high'])})"
        if saved is not None and verdict["saved_low"] is not None
        else ""
    )
    return (
        verdict["arm"],
        verdict["decision"],
        "-" if verdict["effect"] is None else f"{verdict['effect']:+.4f}",
        f"{verdict['low']:+.4f} to {verdict['high']:+.4f}" if known else "unknown",
        "-" if saved is None else percent(saved) + between,
        str(verdict["n"]),
    )
