# SPDX-License-Identifier: Apache-2.0
"""Pooled noise, sample sizes and horizons."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxlm.research.stats.noise import check_horizon, combine, moderate, pool, sample_size


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


def test_a_length_at_which_the_loss_still_falls_fast_is_refused() -> None:
    settled = lambda n: 1.9 + 4.0 * (n / 10) ** -0.8
    lengths = [375.0, 750.0, 1500.0, 1500.0]
    found = check_horizon(lengths, [settled(n) for n in lengths], 5.5)
    assert found.problem is None
    assert found.slope == pytest.approx((settled(750) - settled(1500)) / math.log(2))
    falling = check_horizon(lengths, [5.4, 5.0, 3.1, 3.3], 5.5)  # a transition at the end
    assert falling.slope == pytest.approx(1.8 / math.log(2))
    assert "seeds differ by when they fall" in (falling.problem or "")
    assert check_horizon([1, 2], [3.0, 3.5], 2.0).fall == math.inf
    with pytest.raises(ValueError, match="2 lengths"):
        check_horizon([10, 10], [3, 2], 5.0)


def test_moderated_noise_finds_how_far_groups_agree() -> None:
    rng = np.random.default_rng(2)
    for d0 in (4.0, 20.0):
        sds = 2.0 * np.sqrt(d0 / rng.chisquare(d0, 4000))
        found = moderate([sd * rng.standard_normal(5) for sd in sds])
        assert found is not None
        assert found.df == pytest.approx(d0, rel=0.4)
        assert found.sigma == pytest.approx(2.0, rel=0.05)


def test_few_groups_are_not_taken_to_agree() -> None:
    rng = np.random.default_rng(3)
    few = [moderate(list(rng.standard_normal((3, 4)))) for _ in range(200)]
    many = moderate(list(rng.standard_normal((300, 4))))
    assert many is not None and max(noise.df for noise in few if noise) < many.df
    assert moderate([[1.0, 2.0], [0.0, 3.0]]) is None
    assert moderate([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]) is None  # arms that did nothing
