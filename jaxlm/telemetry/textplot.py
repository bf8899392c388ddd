# SPDX-License-Identifier: Apache-2.0
"""Pictures made of characters, for a terminal.  Standard library only."""

import math
from collections.abc import Iterator, Sequence

from jaxlm.telemetry.readable import fixed

FULL, EMPTY = "\N{BOX DRAWINGS HEAVY HORIZONTAL}", "\N{BOX DRAWINGS LIGHT HORIZONTAL}"


def bar(frac: float, width: int) -> tuple[str, str]:
    """The filled and the empty part of a horizontal bar of `width` columns."""
    full = round(max(0.0, min(frac, 1.0)) * width)
    return FULL * full, EMPTY * (width - full)


def curve(values: Sequence[float], width: int, height: int) -> str:
    """The values from left to right in braille dots: `height` lines of at most `width` columns.

    The highest and lowest value stand at the left; values that are not finite are left out, and
    fewer than two make no curve, "".
    """
    values = [v for v in values if math.isfinite(v)]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    labels = [fixed(high), *[""] * (height - 2), fixed(low)]
    pad = max(map(len, labels))
    columns, rows = 2 * (width - pad - 1), 4 * height  # in dots
    cells = [[0] * (columns // 2) for _ in range(height)]
    ys = []
    for x in range(columns):
        at = x / (columns - 1) * (len(values) - 1)
        i = min(int(at), len(values) - 2)
        y = values[i] + (at - i) * (values[i + 1] - values[i])
        ys.append(round((high - y) / (high - low or 1) * (rows - 1)))
    for x, (before, dot) in enumerate(zip([ys[0], *ys], ys, strict=False)):
        for row in range(min(before, dot), max(before, dot) + 1):
            cells[row // 4][x // 2] |= ((1, 2, 4, 64), (8, 16, 32, 128))[x % 2][row % 4]
    return "\n".join(
        f"{label:>{pad}} " + "".join(chr(0x2800 + cell) for cell in line)
        for label, line in zip(labels, cells, strict=True)
    )


def rows_of(pairs: Sequence[tuple[str, str]], width: int) -> Iterator[list[tuple[str, str]]]:
    """The (name, value) pairs in rows that fit `width` columns as "name value  name value"."""
    row: list[tuple[str, str]] = []
    used = 0
    for name, value in pairs:
        size = len(name) + len(value) + 3
        if row and used + size - 2 > width:
            yield row
            row, used = [], 0
        row.append((name, value))
        used += size
    yield row
