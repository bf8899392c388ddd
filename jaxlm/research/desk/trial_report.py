# SPDX-License-Identifier: Apache-2.0
"""A trial in the report: the ratio of tokens, each forecast beside its outcome, and two pictures."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.errors import RunError
from jaxlm.research.earlier import runs_of
from jaxlm.research.ledger import Record
from jaxlm.research.records import BASELINE, Protocol, protocol_from
from jaxlm.research.trial import ADOPTED, RATIO, curve, size
from jaxlm.telemetry.svg import Point, Series, line_chart

Told = tuple[str, tuple[int, ...]]  # words, and the records behind them


def lines(records: Sequence[Record]) -> Iterator[Told]:
    """Of every trial that was scored, and of one that is only forecast yet."""
    scores = {r.body["protocol"]: r for r in records if r.kind == "score"}
    for told in (r for r in records if r.kind == "forecast"):
        scored = scores.get(told.body["protocol"])
        for name, expected in told.body["expected"].items():
            yield _forecast(name, expected, told, scored)
        if scored is not None:
            yield _ratio(scored)


def _forecast(name: str, expected: dict[str, Any], told: Record, scored: Record | None) -> Told:
    said = (
        f"{name}: forecast {expected['median']:.4f} ({expected['low']:.4f} to "
        f"{expected['high']:.4f}), {expected['reach']:.2f} times as far as any run before it"
    )
    if expected["problem"]:
        said += "; the runs it rests on do not fit its model"
    if scored is None:
        return f"{said}; not run yet", (told.seq,)
    held = "within" if scored.body["covered"][name] else "OUTSIDE"
    return f"{said}; came out at {scored.body['outcomes'][name]:.4f}: {held}", (
        told.seq,
        scored.seq,
    )


def _ratio(scored: Record) -> Told:
    body = scored.body
    high = "unknown" if body["high"] is None else f"{body['high']:.3f}"
    is_clear = body["high"] is not None and not body["low"] <= 1 <= body["high"]
    said = (
        f"what was adopted reaches the first config's final loss with {body['ratio']:.3f} of its tokens "
        f"({body['low']:.3f} to {high}), over {len(body['pairs'])} fresh seeds at the largest width: the "
        f"interval {'excludes' if is_clear else 'does not exclude'} `1`"
    )
    if body["not_reached"]:
        said += f"; {body['not_reached']} did not reach it"
    return said, (scored.seq,)


def figures(records: Sequence[Record], project: Path) -> Iterator[str]:
    """Curves of the trial, and its ratio beside the ladder and the forecast; as HTML."""
    protocols = {r.body["id"]: protocol_from(r.body) for r in records if r.kind == "protocol"}
    told = {r.body["protocol"]: r.body for r in records if r.kind == "forecast"}
    for scored in (r.body for r in records if r.kind == "score"):
        trial = protocols[scored["protocol"]]
        try:
            yield curves(trial, records, project)
        except RunError:  # a run directory that is gone: the numbers stand
            yield "<p>the trial's runs are not here to be drawn</p>"
        yield ratios(scored, told[trial.id], protocols)


def curves(trial: Protocol, records: Sequence[Record], project: Path) -> str:
    """Validation over tokens: each seed faint, their mean strong; dashed: the baseline's final loss."""
    series, runs = [], runs_of(trial, records)
    for color, arm in enumerate((BASELINE, ADOPTED)):
        found = [curve(trial, run, project) for run in runs if run.arm == arm]
        seeds = [[(t / 1e6, y) for t, y in zip(*c, strict=True)] for c in found]
        series += [Series(arm, points, color, is_faint=True) for points in seeds]
        means = [(at[0][0], sum(y for _, y in at) / len(at)) for at in zip(*seeds, strict=True)]
        series.append(Series(arm, means, color))
    final = [run.metric for run in runs if run.arm == BASELINE and run.metric is not None]
    return line_chart(
        series, title="Validation at the largest width", x_label="million tokens",
        y_label=trial.metric, levels=[("baseline's end", sum(final) / len(final))],
    )  # fmt: skip


def ratios(scored: dict[str, Any], told: dict[str, Any], protocols: dict[str, Protocol]) -> str:
    """Over compute: each pair of the ladder, the forecast's interval, and what came out."""
    flops = lambda name: math.log10(protocols[name].flops_per_run[BASELINE])
    of = lambda name: told["by_width"][size(protocols[name])]
    steps = [(flops(name), of(name)) for name in told["rests_on"]]
    means = [(x, math.exp(sum(map(math.log, r)) / len(r))) for x, r in steps]
    spans = [Series("pairs of the ladder", _span(x, r), 0, is_faint=True) for x, r in steps]
    at, expected = flops(scored["protocol"]), told["expected"][RATIO]
    step = (at - steps[0][0]) / 60
    came_out = [scored["low"], scored["ratio"], scored["high"] or scored["ratio"]]
    return line_chart(
        [
            *spans,
            Series("ladder, mean", means, 0),
            Series("forecast before", _span(at - step, [expected["low"], expected["high"]]), 1),
            Series("came out", _span(at + step, came_out), 2),
        ],
        title="Tokens to the baseline's final loss", x_label="log10 of a run's FLOPs",
        y_label="of the baseline's", levels=[("as many", 1.0)],
    )  # fmt: skip


def _span(x: float, values: Sequence[float]) -> list[Point]:
    """A vertical stroke; leaning by a hair, since a line runs by rising x."""
    low, high = min(values), max(values)
    return [(x, low), (x + 1e-6, high)]
