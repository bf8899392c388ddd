# SPDX-License-Identifier: Apache-2.0
"""Pooled noise, sample sizes and horizons."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxlm.research.stats.noise import Noise, check_horizon, combine, pool, sample_size


def test_pooling_is_the_residual_variance_of_one_way_anova() -> None:
    rng = np.random.default_rng(0)
    groups = [list(rng.normal(m, 0.3, n)) for m, n in ((1, 3), (5, 2), (-2, 7), (0, 1))]
    noise = pool(groups)
    rest = np.concatenate([np.array(g) - np.mean(g) for g in groups])
    assert noise is not None and noise.df == 9
    assert noise.sigma == pytest.approx(math.sqrt(rest @ rest / 9))
    assert pool([[1.0], [2.0]]) is None
    both = combine([pool(groups[:2]), None, pool(groups[2:])])
    assert both is not None and both.df == 9
    assert both.sigma == pytest.approx(noise.sigma)


def test_interval_of_sigma_covers() -> None:
    rng = np.random.default_rng(1)
    drawn = rng.normal(0, 2.0, (3000, 5)).std(axis=1, ddof=1)
    hits = [low <= 2.0 <= high for low, high in (Noise(float(s), 4).interval() for s in drawn)]
    assert 0.935 <= np.mean(hits) <= 0.965


@pytest.mark.parametrize(("sd", "effect"), [(1.0, 0.5), (1.0, 1.0), (0.3, 1.0), (2.0, 0.7)])
def test_sample_size_reaches_the_power_by_the_noncentral_t(sd: float, effect: float) -> None:
    def power(n: int) -> float:
        bar = scipy.stats.t.ppf(0.975, n - 1)
        return float(scipy.stats.nct.sf(bar, n - 1, effect / sd * math.sqrt(n)))

    n = sample_size(sd, effect)
    assert power(n) >= 0.78
    assert n <= 3 or power(n - 2) < 0.8


def test_sample_size_refuses_what_is_not_positive() -> None:
    with pytest.raises(ValueError, match="must be > 0"):
        sample_size(1.0, 0.0)


def test_a_horizon_in_free_fall_is_refused_and_a_settled_one_is_not() -> None:
    t = np.arange(10, 1510, 10.0)
    settled = 1.9 + 4.0 * (t / 10) ** -0.8
    falling = 5.5 - 3.0 / (1 + np.exp(-(t - 1450) / 60))  # a transition at the end
    assert check_horizon(t, settled, 0.01).is_fit
    refused = check_horizon(t, falling, 0.15)
    assert not refused.is_fit and "train longer" in (refused.problem or "")


def test_a_horizon_whose_timing_outweighs_the_noise_is_refused() -> None:
    t = np.arange(100, 10_100, 100.0)
    loss = 3.0 + 3.0 * (t / 100) ** -0.5
    slope = 0.5 * 3.0 * (t[-1] / 100) ** -0.5
    assert check_horizon(t, loss, 0.01).slope == pytest.approx(slope, rel=0.05)
    assert check_horizon(t, loss, 0.01).is_fit
    assert "sigmas" in (check_horizon(t, loss, 1e-4).problem or "")
    with pytest.raises(ValueError, match="3 points"):
        check_horizon([1, 2, 3], [3, 2, 1], 0.1)
