# SPDX-License-Identifier: Apache-2.0
"""From rows to the points of a curve, few enough to draw.  Standard library only."""

import math
from collections.abc import Iterable
from itertools import accumulate
from operator import itemgetter

from jaxlm.telemetry.svg import Point
from jaxlm.telemetry.writer import Row


def points_of(rows: Iterable[Row], name: str) -> list[Point]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def centred_mean(points: list[Point], half: int, limit: int) -> list[Point]:
    """At about `limit` of the points, the mean of y over `half` points to either side.

    Looks both ways, so that it does not lag; what is not finite counts as absent.
    """
    ys = [y if math.isfinite(y) else 0.0 for _, y in points]
    sums = [0.0, *accumulate(ys)]
    counts = [0, *accumulate(math.isfinite(y) for _, y in points)]
    means = []
    for i in range(0, len(points), max(1, len(points) // limit)):
        low, high = max(0, i - half), min(len(points), i + half + 1)
        count = counts[high] - counts[low]
        means.append((points[i][0], (sums[high] - sums[low]) / count if count else math.nan))
    return means


def thin(points: list[Point], limit: int) -> list[Point]:
    """About `limit` of the points: each stretch's lowest and highest, so that no peak is lost."""
    if len(points) <= limit:
        return points
    size = math.ceil(len(points) / (limit // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ordered = (
            sorted((p for p in stretch if math.isfinite(p[1])), key=itemgetter(1)) or stretch[:1]
        )
        kept += sorted({ordered[0], ordered[-1]})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]
