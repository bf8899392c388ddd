# SPDX-License-Identifier: Apache-2.0
"""Verdicts as lines for people: effect with interval, what it is worth, and what it rests on."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxlm.research.campaign import Stage
from jaxlm.research.records import BASELINE, Protocol
from jaxlm.research.search import PILOT
from jaxlm.telemetry.readable import aligned, number, percent

TITLE = {
    "screen": "",
    "gate": "at the larger scale, on other seeds",
    "confirmation": "on fresh seeds, which decided nothing: the gain that may be claimed",
    "search": "",
    "ladder": "at a width from which the trial is forecast",
    "trial": "at the largest width, on fresh seeds",
}


def table(stages: Sequence[Stage]) -> Iterator[str]:
    """All stages of a campaign; the last lines say what it cost and what it does not say."""
    for stage in stages:
        if TITLE[stage.protocol.stage]:
            yield f"\n{TITLE[stage.protocol.stage]}:"
        yield from _verdicts(stage)
        for departure in stage.review.departures:
            yield f"EXPLORATORY: {departure}"
    yield ""
    first, last = stages[0].protocol, stages[-1]
    yield from _conclusions(stages)
    yield f"{_cost(stages)}; protocol {first.id[:12]}"
    if first.stage == "screen" and not first.confirm and _kept(stages[0]):
        yield "no gain is claimed: what was selected looks better than it is; --confirm N measures it anew"
    if last.review.claim is not None:
        yield _claim(last.review.claim, first)


def _cost(stages: Sequence[Stage]) -> str:
    """Of all runs that the verdicts rest on, whoever trained them when."""
    first, runs = stages[0].protocol, [run for stage in stages for run in stage.runs]
    told = f"cost: {number(sum(map(flops_of, stages)))}FLOPs in {len(runs)} runs"
    if earlier := sum(run.is_reused for run in runs):
        told += f", {earlier} of them trained before"
    if first.search:
        told += f", after a pilot of {number(PILOT * first.flops_per_run[BASELINE])}FLOPs"
    return told


def flops_of(stage: Stage) -> float:
    """Of all runs of a stage, as far as they went; a policy's arms are taken at the baseline's cost."""
    costs = stage.protocol.flops_per_run
    base = costs[BASELINE]
    if stage.protocol.search is None:
        return sum(costs[run.arm] for run in stage.runs)
    scales = stage.protocol.search.knowledge["scale_costs"]
    furthest: dict[tuple[str, int, int], float] = {}
    for run in stage.runs:
        key = (run.arm, run.seed, run.scale)
        furthest[key] = max(run.fraction, furthest.get(key, 0.0))
    return sum(
        share * costs.get(arm, base) * scales[scale] for (arm, _, scale), share in furthest.items()
    )


def _verdicts(stage: Stage) -> Iterator[str]:
    protocol = stage.protocol
    head = (
        "arm", "verdict", f"effect, {protocol.metric}", f"{1 - protocol.alpha:.0%} interval",
        "compute saved", "runs" if protocol.search else "seeds",
    )  # fmt: skip
    yield from aligned([head, *(_cells(verdict) for verdict in stage.review.verdicts)])


def _conclusions(stages: Sequence[Stage]) -> Iterator[str]:
    """Of each arm, why, and how far it came."""
    for verdict in stages[0].review.verdicts:
        arm, says = verdict["arm"], [verdict["reason"]]
        if verdict.get("seeds_needed"):
            says.append(
                f"about {verdict['seeds_needed']} seeds would settle an effect of this size"
            )
        q = verdict.get("project_q")
        if verdict["decision"] == "keep" and q is not None:
            says.append(f"false-discovery rate over the whole project: {q:.2g}")
        for stage in stages[1:]:
            found = next((v for v in stage.review.verdicts if v["arm"] == arm), None)
            if found is not None and stage.protocol.stage == "gate":
                held = found["decision"] == "keep"
                says.append(
                    "holds at the larger scale: adopted"
                    if held
                    else "not adopted: " + found["reason"]
                )
        yield f"{arm}: {'; '.join(says)}"
    predicted = stages[0].protocol.predicted
    if predicted is not None:
        yield from _prediction(predicted, stages[0])
    known = [v for v in stages[0].review.verdicts if v["noise_floor"] is not None]
    if known:
        floors = ", ".join(sorted({f"{v['noise_floor']:.4f}" for v in known}))
        yield f"noise of one paired difference: {floors} ({stages[0].protocol.metric})"


def _prediction(predicted: tuple[float, float, float], stage: Stage) -> Iterator[str]:
    """What was expected of the best arm, beside what it came to."""
    (effect, low, high), sign = predicted, 1 if stage.protocol.direction == "lower" else -1
    seen = [v for v in stage.review.verdicts if v["effect"] is not None]
    if seen:
        best = min(seen, key=lambda v: sign * v["effect"])
        yield (
            f"predicted of the best arm {effect:+.4f} ({low:+.4f} to {high:+.4f}); {best['arm']} came out "
            f"at {best['effect']:+.4f}: {'within' if low <= best['effect'] <= high else 'outside'}"
        )


def _claim(claim: dict[str, Any], protocol: Protocol) -> str:
    if claim["arm"] == "baseline":
        return "kept: nothing"
    interval = "" if claim["low"] is None else f" ({claim['low']:+.4f} to {claim['high']:+.4f})"
    where = " at the larger scale" if claim["scale"] else ""
    return (
        f"kept together: {claim['arm']}; on fresh seeds{where} "
        f"{claim['effect']:+.4f}{interval} {protocol.metric}"
    )


def _kept(stage: Stage) -> bool:
    return any(verdict["decision"] == "keep" for verdict in stage.review.verdicts)


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
