# SPDX-License-Identifier: Apache-2.0
"""A curve keeps its peaks, its means and its size, however long the run and however it resumed."""

import math
import random

import pytest

from jaxlm.dash.curve import STRETCHES, At, Curve


def at(step: int) -> At:
    return At(step, 10.0 * step, step / 2)


def grown(values: list[float]) -> Curve:
    curve = Curve()
    for step, value in enumerate(values, start=1):
        curve.add(at(step), value)
    return curve


@pytest.mark.parametrize("length", [1, 2, STRETCHES, STRETCHES + 1, 7_777, 40_000])
def test_no_peak_is_lost_and_memory_is_bounded(length: int) -> None:
    rng = random.Random(length)
    values = [rng.gauss(3, 1) for _ in range(length)]
    values[rng.randrange(length)], values[rng.randrange(length)] = 1e3, -1e3
    curve = grown(values)
    points = curve.points
    assert len(points) <= 2 * STRETCHES
    assert length <= STRETCHES or len(points) > STRETCHES / 2
    assert {max(values), min(values)} <= {y for _, y in points}
    assert all(values[where.step - 1] == y and where == at(where.step) for where, y in points)
    assert [p[0].step for p in points] == sorted({p[0].step for p in points})
    total = sum(s.total for s in curve.stretches)
    assert total / length == pytest.approx(sum(values) / length)
    assert sum(s.count for s in curve.stretches) == length


def test_what_is_not_finite_is_a_gap_where_nothing_else_is() -> None:
    curve = grown([1.0, math.nan, math.inf, 2.0])
    assert [y for _, y in curve.points if math.isfinite(y)] == [1.0, 2.0]
    assert sum(math.isnan(y) for _, y in curve.means) == 2
    long = grown([math.nan if i % 2 else 1.0 for i in range(4 * STRETCHES)])
    assert all(y == 1.0 for _, y in long.points + long.means)


@pytest.mark.parametrize("length", [100, 5_000])
@pytest.mark.parametrize("back", [1, 37, 60])
def test_a_run_that_went_back_is_drawn_as_if_it_had_not(length: int, back: int) -> None:
    values = [100.0 + i for i in range(length)]
    curve = grown(values)
    curve.cut(back)
    assert all(where.step < back for where, _ in curve.points + curve.means)
    for step in range(back, length + 1):
        curve.add(at(step), float(step))
    points = curve.points
    assert [p[0].step for p in points] == sorted({p[0].step for p in points})
    assert all(y == (99.0 + where.step if where.step < back else where.step) for where, y in points)
    assert points[-1][1] == length
