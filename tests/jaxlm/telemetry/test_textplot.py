# SPDX-License-Identifier: Apache-2.0
"""Pictures of characters have the size asked for and the shape of the data."""

import math
import random

import pytest

from jaxlm.telemetry.textplot import bar, curve, rows_of


def _dots(picture, height):
    """(x, y) of every braille dot, from the characters' code points; y from the top."""
    pad = picture.index(" ", picture.index(picture.strip()[0])) + 1
    bits = {0x1: (0, 0), 0x2: (0, 1), 0x4: (0, 2), 0x8: (1, 0), 0x10: (1, 1), 0x20: (1, 2),
            0x40: (0, 3), 0x80: (1, 3)}  # fmt: skip
    lines = picture.split("\n")
    assert len(lines) == height
    return {
        (2 * column + dx, 4 * row + dy)
        for row, line in enumerate(lines)
        for column, c in enumerate(line[pad:])
        for bit, (dx, dy) in bits.items()
        if (ord(c) - 0x2800) & bit
    }


@pytest.mark.parametrize(("width", "height", "count"), [(72, 6, 9), (30, 2, 2), (40, 5, 1000)])
def test_a_falling_line_goes_from_the_top_left_to_the_bottom_right_without_a_gap(
    width, height, count
):
    picture = curve([3 - 2 * i / (count - 1) for i in range(count)], width, height)
    assert {len(line) for line in picture.split("\n")} == {width}
    dots = _dots(picture, height)
    right = max(x for x, _ in dots)
    assert (0, 0) in dots and (right, 4 * height - 1) in dots
    assert right == 2 * (width - len("3.000 ")) - 1
    for x in range(1, right + 1):
        assert min(y for at, y in dots if at == x) <= max(y for at, y in dots if at == x - 1) + 1
    assert picture.startswith("3.000 ") and picture.split("\n")[-1].startswith("1.000 ")


@pytest.mark.parametrize("values", [[9.0] * 50 + [1.0] * 50, [1.0] * 50 + [9.0] * 50])
def test_a_cliff_is_drawn_from_top_to_bottom(values):
    dots = _dots(curve(values, 40, 5), 5)
    assert {y for _, y in dots} == set(range(20))


def test_values_that_are_not_finite_are_left_out_of_a_curve():
    values = [2.0, math.nan, 1.5, math.inf, 1.0]
    assert curve(values, 40, 4) == curve([2.0, 1.5, 1.0], 40, 4)


@pytest.mark.parametrize("values", [[], [1.0], [math.nan] * 9])
def test_fewer_than_two_values_make_no_curve(values):
    assert curve(values, 40, 4) == ""


def test_a_constant_is_a_flat_line():
    assert {y for _, y in _dots(curve([2.0] * 5, 40, 4), 4)} == {0}


@pytest.mark.parametrize(("frac", "full"), [(-1, 0), (0, 0), (0.5, 10), (1, 20), (7, 20)])
def test_a_bar_is_filled_in_proportion_and_never_overflows(frac, full):
    done, rest = bar(frac, 20)
    assert (len(done), len(rest)) == (full, 20 - full)


def test_pairs_keep_their_order_and_fit_the_width():
    rng = random.Random(0)
    for _ in range(200):
        pairs = [
            ("n" * rng.randint(1, 9), "v" * rng.randint(1, 9)) for _ in range(rng.randint(1, 9))
        ]
        width = rng.randint(19, 60)
        rows = list(rows_of(pairs, width))
        assert [pair for row in rows for pair in row] == pairs
        lines = ["  ".join(map(" ".join, row)) for row in rows]
        assert max(map(len, lines)) <= width
        for row, line in zip(rows[1:], lines, strict=False):  # no earlier break than needed
            assert len(line) + 2 + len(" ".join(row[0])) > width
