# SPDX-License-Identifier: Apache-2.0
"""A thinned curve keeps what the eye would look for; the mean agrees with NumPy."""

import math

import numpy as np
import pytest

from jaxlm.telemetry.curves import centred_mean, points_of, thin


def _noise(count):
    return list(enumerate(np.random.default_rng(0).normal(size=count).tolist(), start=1))


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 1000, 12_345])
def test_thinning_keeps_order_extremes_and_ends(count):
    points = _noise(count)
    few = thin(points, 100)
    assert len(few) <= 101 and (len(few) >= 50 or few == points)
    assert few == sorted(set(few)) and set(few) <= set(points)
    for choose in (min, max):
        assert not points or choose(few, key=lambda p: p[1]) == choose(points, key=lambda p: p[1])
    assert few[-1:] == points[-1:]


def test_thinning_keeps_a_single_spike_among_what_is_not_finite():
    points = [(i, math.nan) for i in range(5000)]
    points[3210] = (3210, 7.0)
    assert (3210, 7.0) in thin(points, 100)


@pytest.mark.parametrize(("count", "half"), [(1, 3), (7, 3), (500, 0), (1001, 25)])
def test_the_mean_is_that_of_the_window(count, half):
    points = _noise(count)
    points[count // 2] = (count // 2 + 1, math.nan)
    ys = np.array([y for _, y in points])
    got = dict(centred_mean(points, half, limit=count))
    for i, (x, _) in enumerate(points):
        window = ys[max(0, i - half) : i + half + 1]
        want = np.nanmean(window) if np.isfinite(window).any() else math.nan
        assert got[x] == pytest.approx(want, nan_ok=True)


def test_a_huge_value_does_not_spoil_the_mean_after_it():
    """Guards against running sums, whose differences lose everything after 1e30."""
    points = [(0, 1e30)] + [(i, 2.0) for i in range(1, 50)]
    assert centred_mean(points, half=2, limit=50)[-1] == (49, 2.0)


def test_the_mean_comes_at_about_as_many_points_as_asked():
    assert 300 <= len(centred_mean(_noise(10_000), half=5, limit=300)) <= 310


def test_points_are_those_of_rows_that_have_the_metric():
    rows = [{"step": 1, "a": 0.0}, {"step": 2}, {"step": 3, "a": None}, {"step": 4, "a": 2.0}]
    assert points_of(rows, "a") == [(1, 0.0), (4, 2.0)]
