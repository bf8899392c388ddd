# SPDX-License-Identifier: Apache-2.0
"""From rows to the points of a curve, few enough to draw.  Standard library only."""

import math
from collections.abc import Iterable
from operator import itemgetter

from jaxlm.telemetry.svg import Point
from jaxlm.telemetry.writer import Row


def points_of(rows: Iterable[Row], name: str) -> list[Point]:
    """(step, value) of one metric, in the order of the rows."""
    return [(row["step"], value) for row in rows if (value := row.get(name)) is not None]


def centred_mean(points: list[Point], half: int, limit: int) -> list[Point]:
    """At about `limit` of the points, the mean of y over `half` points to either side.

    Looks both ways, so that it does not lag; what is not finite counts as absent.
    """
    ys = [y for _, y in points]
    means = []
    for i in range(0, len(ys), max(1, len(ys) // limit)):
        near = ys[max(0, i - half) : i + half + 1]
        if not math.isfinite(sum(near)):
            near = [y for y in near if math.isfinite(y)] or [math.nan]
        means.append((points[i][0], sum(near) / len(near)))
    return means


def thin(points: list[Point], limit: int) -> list[Point]:
    """About `limit` of the points: each stretch's lowest and highest, so that no peak is lost."""
    if len(points) <= limit:
        return points
    size = math.ceil(len(points) / (limit // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [p for p in stretch if math.isfinite(p[1])] or stretch[:1]
        kept += sorted({min(finite, key=itemgetter(1)), max(finite, key=itemgetter(1))})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]
