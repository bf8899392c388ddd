# SPDX-License-Identifier: Apache-2.0
"""Forecasts of a larger run: against the textbook, and against worlds whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from jaxlm.research.stats.forecast import MAX_REACH, predict

SIZES = np.repeat([1.0, 4.0, 9.0, 16.0], 3)  # compute; three seeds each
NEW = 4  # runs whose mean is forecast


def test_of_a_known_straight_line_it_is_the_interval_of_textbooks() -> None:
    rng = np.random.default_rng(0)
    y = 3 - 0.2 * np.log(SIZES) + rng.normal(0, 0.05, SIZES.size)
    x = np.column_stack([np.ones(SIZES.size), np.log(SIZES)])
    beta, rss, _, _ = np.linalg.lstsq(x, y, rcond=None)
    new = np.array([1.0, np.log(40.0)])
    df = SIZES.size - 2
    variance = float(rss[0]) / df * (1 / NEW + new @ np.linalg.inv(x.T @ x) @ new)
    want = stats.t.interval(0.95, df, loc=new @ beta, scale=np.sqrt(variance))
    found = predict(SIZES, y, 40.0, NEW, rates=(0.0,))
    assert (found.low, found.high) == pytest.approx(want, rel=1e-6)
    assert found.median == pytest.approx(new @ beta, rel=1e-6)


def coverage(at: float, rates: tuple[float, float], noise: float, worlds: int = 500) -> float:
    """Share of worlds, each with its own floor, scale, rate and noise, whose outcome lies within."""
    hits = []
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        floor, scale, k = rng.uniform(0, 2), rng.uniform(0.5, 2), rng.uniform(*rates)
        truth = lambda c, f=floor, s=scale, k=k: f + s * c**-k
        sigma = noise * (truth(1.0) - truth(16.0))
        y = truth(SIZES) + rng.normal(0, sigma, SIZES.size)
        outcome = truth(at) + rng.normal(0, sigma / np.sqrt(NEW))
        found = predict(SIZES, y, at, NEW)
        hits.append(found.low <= outcome <= found.high)
    return float(np.mean(hits))


@pytest.mark.parametrize(
    ("at", "noise"), [(40.0, 0.1), pytest.param(200.0, 0.05, marks=pytest.mark.slow)]
)
def test_95_per_cent_intervals_cover_95_per_cent_of_outcomes(at: float, noise: float) -> None:
    """Under its assumptions: rates as in the prior; 500 worlds, two standard errors are 1.9 %."""
    assert 0.93 <= coverage(at, (0.0, 1.0), noise) <= 0.97


def test_a_curve_that_levels_off_is_not_taken_for_a_line() -> None:
    truth = lambda c: 1.5 + 1.0 * c**-0.6
    rng = np.random.default_rng(1)
    y = truth(SIZES) + rng.normal(0, 0.004, SIZES.size)
    found = predict(SIZES, y, 100.0, NEW)
    line = predict(SIZES, y, 100.0, NEW, rates=(0.0,))
    assert found.low <= truth(100.0) <= found.high
    assert line.high < truth(100.0) and line.problem is not None


def test_the_farther_the_wider_and_too_far_is_refused() -> None:
    rng = np.random.default_rng(2)
    y = 2 + SIZES**-0.4 + rng.normal(0, 0.01, SIZES.size)
    widths = [f.high - f.low for f in (predict(SIZES, y, at, NEW) for at in (20.0, 60.0, 300.0))]
    assert widths[0] < widths[1] / 1.3 < widths[2] / 1.69
    with pytest.raises(ValueError, match="too far"):
        predict(SIZES, y, 17.0 * MAX_REACH, NEW)


def test_a_recipe_that_breaks_within_the_sizes_is_told() -> None:
    rng = np.random.default_rng(3)
    y = 2 + SIZES**-0.4 + 0.3 * (SIZES == 9.0) + rng.normal(0, 0.01, SIZES.size)
    told = predict(SIZES, y, 40.0, NEW).problem
    assert told is not None and "lie on no curve" in told
    assert predict(SIZES, 2 + SIZES**-0.4, 40.0, NEW).problem is None


@pytest.mark.parametrize(
    ("compute", "values", "why"),
    [
        ([1, 1, 2, 2], [3.0, 3.1, 2.0, 2.1], "at least 3 sizes"),
        ([1, 2, 3], [3.0, 2.0, 1.0], "several seeds"),
        ([1, 1, 2, 3], [3.0, 3.1, np.nan, 1.0], "finite"),
    ],
)
def test_what_carries_no_forecast_is_refused(
    compute: list[float], values: list[float], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        predict(compute, values, 4.0, 1)
