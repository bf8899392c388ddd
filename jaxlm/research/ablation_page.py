# SPDX-License-Identifier: Apache-2.0
"""One self-contained page about a protocol: verdicts, effects with intervals, curves, every run.

Every number in it comes from a record of the ledger or a run's telemetry.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.research.ablation_table import TITLE, flops_of
from jaxlm.research.campaign import Stage
from jaxlm.research.records import Protocol, Review, RunRecord
from jaxlm.telemetry.curves import centred_mean, points_of, thin
from jaxlm.telemetry.page import page, write_page
from jaxlm.telemetry.readable import markup, number, percent
from jaxlm.telemetry.svg import NUM_COLORS, Series, line_chart, nice_ticks
from jaxlm.telemetry.writer import latest_rows

WIDTH, LEFT, RIGHT, ROW = 900, 260, 30, 34  # of the plot of effects
MAX_POINTS = 300
PILL = {"keep": "completed", "discard": "diverged", "inconclusive": ""}


def write_ablation(stages: Sequence[Stage], project: Path) -> Path:
    """Writes PROJECT/<id of the first protocol>.html and returns its path."""
    protocol = stages[0].protocol
    path = project / f"{protocol.id[:12]}.html"
    parts = [f"<h1>{markup(protocol.hypothesis)}</h1>"]
    for stage in stages:
        parts += _stage(stage, project)
    write_page(path, page(f"{protocol.hypothesis} · jaxlm", "\n".join(parts)))
    return path


def _stage(stage: Stage, project: Path) -> list[str]:
    protocol, review = stage.protocol, stage.review
    title = TITLE[protocol.stage]
    return [
        f"<h2>{markup(title[:1].upper() + title[1:])}</h2>" if title else "",
        f'<p class="mute">{markup(_facts(stage))}</p>',
        *(
            f'<p><span class="pill crashed">exploratory</span> {markup(d)}</p>'
            for d in review.departures
        ),
        "<h2>Verdicts</h2>",
        _verdicts(review, protocol.metric),
        _claimed(review),
        "<h2>Effects</h2>",
        f'<div class="box">{effects(review, protocol)}</div>',
        "<h2>Curves</h2>",
        f'<div class="grid">{curves(protocol, stage.runs, project)}</div>',
        "<h2>Runs</h2>",
        _runs(stage.runs),
    ]


def _facts(stage: Stage) -> str:
    protocol = stage.protocol
    bound = (
        f"worth keeping from {protocol.smallest_effect:g} {protocol.metric}"
        if protocol.margin is None
        else f"kept where no worse than by {protocol.margin:g} {protocol.metric}"
    )
    policy = f" · policy {protocol.search.policy}" if protocol.search else ""
    return (
        f"protocol {protocol.id[:12]} · {len(protocol.arms)} arms · {len(stage.runs)} runs · "
        f"{number(flops_of(stage))}FLOPs · {bound}{policy}"
    )


def _claimed(review: Review) -> str:
    if review.claim is None:
        return ""
    low, high = review.claim["low"], review.claim["high"]
    interval = "" if low is None else f" ({_signed(low)} to {_signed(high)})"
    return (
        f"<p>Kept together: {markup(review.claim['arm'])}; on fresh seeds "
        f"{_signed(review.claim['effect'])}{interval}</p>"
    )


def _verdicts(review: Review, metric: str) -> str:
    head = "".join(
        f"<th>{markup(name)}</th>"
        for name in ("arm", "verdict", metric, "interval", "compute saved", "seeds", "why")
    )
    return f'<div class="box"><table><tr>{head}</tr>{"".join(map(_verdict, review.verdicts))}</table></div>'


def _verdict(verdict: dict[str, Any]) -> str:
    saved = verdict.get("saved_share")
    cells = (
        markup(verdict["arm"]),
        f'<span class="pill {PILL[verdict["decision"]]}">{verdict["decision"]}</span>',
        _signed(verdict["effect"]),
        f"{_signed(verdict['low'])} to {_signed(verdict['high'])}",
        "-" if saved is None else percent(saved),
        str(verdict["n"]),
        markup(verdict["reason"]),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4f}"


def effects(review: Review, protocol: Protocol) -> str:
    """Each arm a dot with its interval; left of the dashed line is worth keeping."""
    sign = -1 if protocol.direction == "lower" else 1
    bound = sign * protocol.smallest_effect if protocol.margin is None else -sign * protocol.margin
    known = [v for v in review.verdicts if v["effect"] is not None]
    if protocol.search is not None:
        return (
            "<p>a policy's own estimates, shrunken; only the claim is measured on fresh seeds</p>"
        )
    ends = [x for v in known for x in (v["low"], v["effect"], v["high"]) if x is not None]
    if not ends:
        return "<p>no effect is known: no seed completed in both an arm and the baseline</p>"
    low, high = min([0.0, bound, *ends]), max([0.0, bound, *ends])
    pad = (high - low or 1.0) * 0.06
    low, high = low - pad, high + pad
    at = lambda x: LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    bottom = ROW * len(known) + 10
    ticks = "".join(
        f'<line x1="{at(x):.1f}" x2="{at(x):.1f}" y1="0" y2="{bottom}"/>'
        f'<text class="middle" x="{at(x):.1f}" y="{bottom + 18}">{number(x)}</text>'
        for x in nice_ticks(low, high, 6)
    )
    mark = f'<line class="level" x1="{at(bound):.1f}" x2="{at(bound):.1f}" y1="0" y2="{bottom}"/>'
    rows = "".join(_effect(v, ROW * i + ROW / 2 + 4, at) for i, v in enumerate(known))
    better = "further left is better" if sign < 0 else "further right is better"
    return (
        '<figure class="chart">'
        f"<figcaption>Effect on {markup(protocol.metric)} <small>against the baseline, {better}; "
        f"dashed: worth keeping</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {bottom + 26}" role="img">{ticks}{mark}{rows}</svg></figure>'
    )


def _effect(verdict: dict[str, Any], y: float, at: Any) -> str:
    color = {"keep": 2, "discard": 4, "inconclusive": 5}[verdict["decision"]]
    name = verdict["arm"] if len(verdict["arm"]) < 36 else verdict["arm"][:34] + "…"
    label = f'<text class="end" x="{LEFT - 12}" y="{y + 4:.1f}">{markup(name)}</text>'
    dot = f'<path class="k{color}" stroke-width="9" style="stroke-width:9" d="M{at(verdict["effect"]):.1f} {y:.1f}h0"/>'
    if verdict["low"] is None:
        return label + dot
    span = f"M{at(verdict['low']):.1f} {y:.1f}H{at(verdict['high']):.1f}"
    return f'{label}<path class="k{color}" d="{span}"/>{dot}'


def curves(protocol: Protocol, runs: Sequence[RunRecord], project: Path) -> str:
    """Validation and training loss, each seed faint and their mean strong, one colour an arm."""
    charts = []
    for kind, name, title in (
        ("eval", "eval/bpb", "Validation"),
        ("train", "train/loss_nats", "Training loss"),
    ):
        series = []
        for i, arm in enumerate(protocol.arms[:NUM_COLORS]):
            mine = [run for run in runs if run.arm == arm.name and run.scale == 0]
            paths = list({project / run.directory: None for run in mine if run.directory})
            curves = [points_of(latest_rows(path, kind), name) for path in paths]
            if kind == "train":
                curves = [centred_mean(c, max(1, len(c) // 50), MAX_POINTS) for c in curves]
            curves = [thin(c, MAX_POINTS) for c in curves if c]
            series += [Series(arm.name, c, i, is_faint=True) for c in curves]
            series.append(Series(arm.name, _mean(curves), i))
        charts.append(
            f'<div class="box">{line_chart(series, title=title, x_label="update", y_label=name)}</div>'
        )
    return "".join(charts)


def _mean(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """At steps that all curves have."""
    if not curves:
        return []
    common = set.intersection(*({x for x, _ in curve} for curve in curves))
    by_step: dict[float, list[float]] = {x: [] for x in sorted(common)}
    for curve in curves:
        for x, y in curve:
            if x in by_step:
                by_step[x].append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in by_step.items()]


def _how_far(run: RunRecord) -> str:
    where = " at the larger scale" if run.scale else ""
    return f"{run.status}{f' at {run.fraction:.0%}' if run.fraction < 1 else ''}{where}"


def _runs(runs: Sequence[RunRecord]) -> str:
    head = "".join(f"<th>{n}</th>" for n in ("arm", "seed", "result", "status", "run"))
    rows = "".join(
        f"<tr><td>{markup(run.arm)}</td><td>{run.seed}</td>"
        f"<td>{'-' if run.metric is None else f'{run.metric:.4f}'}</td>"
        f"<td>{_how_far(run)}{', trained earlier' if run.is_reused else ''}</td>"
        f'<td><a href="{markup(run.directory)}/report.html">{markup(run.run_id[:12])}</a></td></tr>'
        for run in runs
    )
    return f'<div class="box"><table><tr>{head}</tr>{rows}</table></div>'
