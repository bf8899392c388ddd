# SPDX-License-Identifier: Apache-2.0
"""Line charts as SVG text, for a page made by page.py, which has their colours and read-outs.

Standard library only.  A path keeps the data's own coordinates (a matrix does the scaling), so the
numbers can be read back from the picture: page.js does, under the pointer.
"""

import dataclasses
import math
from collections.abc import Sequence
from operator import itemgetter

from jaxlm.telemetry.readable import markup, number

Point = tuple[float, float]
WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 32  # margins; the plot lies between them
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
NUM_COLORS = 6


@dataclasses.dataclass(frozen=True)
class Series:
    """One line, by rising x; a point that is not finite (on a log scale: or not > 0) breaks it."""

    name: str
    points: Sequence[Point]
    color: int = 0  # 0..NUM_COLORS-1
    is_faint: bool = False  # behind, thin, and not in the legend


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    description: str = "",
    levels: Sequence[tuple[str, float]] = (),
    marks: Sequence[tuple[float, str]] = (),
    is_log: bool = False,
    from_zero: bool = False,
) -> str:
    """A <figure>: title, description (or the values under the pointer), picture, legend.

    levels: dashed horizontals, (label, y).  marks: dotted verticals, (x, label).
    from_zero: a linear scale starts at 0.  Without a point to draw, the figure says so.
    """
    drawn = [dataclasses.replace(s, points=_scaled(s.points, is_log)) for s in series]
    finite = [p for s in drawn for p in s.points if not math.isnan(p[1])]
    head = (
        f"<figcaption>{markup(title)} <small>{markup(y_label)}</small></figcaption>"
        f"<output>{markup(description)}</output>"
    )
    if not finite:
        return f'<figure class="chart">{head}<p><small>no data yet</small></p></figure>'
    levels = [(name, math.log10(y) if is_log else y) for name, y in levels if y > 0 or not is_log]
    x0, x1 = _padded(min(x for x, _ in finite), max(x for x, _ in finite), 0.0)
    if 0 < x0 <= x1 / 4:
        x0 = 0.0
    y0, y1 = _y_range(drawn, [y for _, y in levels])
    if from_zero and not is_log:
        y0, y1 = min(0.0, y0), max(0.0, y1)
    sx, sy = PLOT_W / (x1 - x0), PLOT_H / (y1 - y0)
    reach = 1e6 * (y1 - y0)  # beyond this a renderer's float32 fails
    paths = "".join(_path(s, y0 - reach, y1 + reach) for s in drawn)
    verticals = "".join(
        f'<line class="mark" x1="{x:g}" x2="{x:g}" y1="{y0:g}" y2="{y1:g}">'
        f"<title>{markup(text)}</title></line>"
        for x, text in marks
        if x0 <= x <= x1
    )
    lines = "".join(
        f'<line class="level" x1="{x0:g}" x2="{x1:g}" y1="{y:g}" y2="{y:g}"/>' for _, y in levels
    )
    return (
        f'<figure class="chart" data-x="{markup(x_label)}" data-x0="{x0:.9g}" data-x1="{x1:.9g}" '
        f'data-log="{int(is_log)}">{head}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{markup(title)}</title><desc>{markup(_describe(series, description))}</desc>"
        f'<g transform="translate({LEFT} {TOP})">{_axes((x0, x1), (y0, y1), is_log, x_label)}'
        f'<svg width="{PLOT_W}" height="{PLOT_H}" overflow="hidden">'
        f'<rect class="plot" width="{PLOT_W}" height="{PLOT_H}" fill="none"/>'
        f'<g transform="matrix({sx:.9g} 0 0 {-sy:.9g} {-x0 * sx:.9g} {y1 * sy:.9g})">'
        f'{lines}{verticals}{paths}</g><line class="cursor" y2="{PLOT_H}"/></svg>'
        f"{_level_labels(levels, y1, sy, is_log)}</g></svg>{_legend(series)}</figure>"
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten inside [low, high], at most count + 1."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [
        i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def log_ticks(low: float, high: float) -> list[float]:
    """Exponents to mark between low and high: decades; where few, with 2 and 5, or all digits."""
    first, last = math.floor(low), math.ceil(high)
    every = max(1, math.ceil((last - first) / 6))
    for digits in ((1,), (1, 2, 5), range(1, 10)):
        marks = [k + math.log10(d) for k in range(first, last + 1, every) for d in digits]
        inside = [m for m in marks if low <= m <= high]
        if len(inside) >= 3:
            return inside
    return [math.log10(y) for y in nice_ticks(10**low, 10**high)]


def _scaled(points: Sequence[Point], is_log: bool) -> list[Point]:
    """nan for what cannot be drawn: beyond +-1e100, too, where the arithmetic would overflow."""
    if is_log:
        return [(x, math.log10(y) if 0 < y < 1e100 else math.nan) for x, y in points]
    return [(x, y if abs(y) < 1e100 else math.nan) for x, y in points]


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    return low - share * (high - low), high + share * (high - low)


def _y_range(series: Sequence[Series], extra: list[float]) -> tuple[float, float]:
    """All lines, but of each no more than its middle 99 %: a spike must not flatten the rest."""
    bounds = list(extra)
    for s in series:
        ys = sorted(y for _, y in s.points if not math.isnan(y))
        cut = len(ys) // 200
        bounds += ys[cut : cut + 1] + ys[len(ys) - 1 - cut : len(ys) - cut]
    return _padded(min(bounds), max(bounds), 0.04)


def _path(s: Series, low: float, high: float) -> str:
    parts, pen = [], "M"
    for x, y in s.points:
        if math.isnan(y):
            pen = "M"
        else:
            parts.append(f"{pen}{x:.9g} {min(max(y, low), high):.6g}")
            pen = "L"
    if len(parts) == 1:  # a lone point: a round cap of no length is a dot
        parts.append("h0")
    style = f"k{s.color % NUM_COLORS}" + (" faint" if s.is_faint else "")
    return f'<path class="{style}" data-name="{markup(s.name)}" d="{"".join(parts)}"/>'


def _axes(xs: Point, ys: Point, is_log: bool, x_label: str) -> str:
    (x0, x1), (y0, y1) = xs, ys
    rows = [_label(PLOT_W, PLOT_H + 29, x_label)]
    for y in log_ticks(y0, y1) if is_log else nice_ticks(y0, y1):
        at = (y1 - y) / (y1 - y0) * PLOT_H
        rows.append(f'<line x2="{PLOT_W}" y1="{at:.1f}" y2="{at:.1f}"/>')
        text = number(10**y, 6) if is_log else number(y, 6, like=y1)
        rows.append(_label(-6, at + 4, text))
    for x in nice_ticks(x0, x1, 4):
        at = (x - x0) / (x1 - x0) * PLOT_W
        style = "end" if at > PLOT_W - 12 else "middle"
        rows.append(_label(at, PLOT_H + 16, number(x, 6, like=x1), style))
    return "".join(rows)


def _level_labels(levels: Sequence[tuple[str, float]], y1: float, sy: float, is_log: bool) -> str:
    """Above its line, each; moved up where it would cover the one below."""
    rows, free = [], math.inf
    for name, y in sorted(levels, key=lambda level: level[1]):
        at = min((y1 - y) * sy - 4, free)
        free = at - 13
        rows.append(_label(PLOT_W - 3, at, f"{name} {number(10**y if is_log else y)}", "end halo"))
    return "".join(rows)


def _label(x: float, y: float, text: str, style: str = "end") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{markup(text)}</text>'


def _legend(series: Sequence[Series]) -> str:
    named = [s for s in series if not s.is_faint]
    if len(named) < 2:
        return ""
    items = (
        f'<li class="k{s.color % NUM_COLORS}"><span>{markup(s.name)}</span></li>' for s in named
    )
    return f"<ul>{''.join(items)}</ul>"


def _describe(series: Sequence[Series], description: str) -> str:
    """What a reader who cannot see the lines needs: where each begins, ends, and is lowest."""
    parts = [description] if description else []
    for s in series:
        points = [p for p in s.points if math.isfinite(p[1])]
        if points and not s.is_faint:
            named = (
                (points[0], "first"),
                (points[-1], "last"),
                (min(points, key=itemgetter(1)), "lowest"),
            )
            values = ", ".join(f"{what} {number(y)} at {number(x, 6)}" for (x, y), what in named)
            parts.append(f"{s.name}: {values}.")
    return " ".join(parts)
