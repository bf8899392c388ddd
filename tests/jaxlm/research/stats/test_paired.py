# SPDX-License-Identifier: Apache-2.0
"""Paired comparisons against scipy.stats and brute force."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from jaxlm.research.stats.paired import differences, sign_flip, t_interval


@pytest.mark.parametrize("n", [1, 2, 5, 8, 12])
@pytest.mark.parametrize("side", [-1, 0, 1])
def test_sign_flip_counts_every_pattern_of_signs(n: int, side: int) -> None:
    d = np.random.default_rng(n).normal(-0.4, 1, n)
    statistic = {0: abs, -1: lambda x: -x, 1: lambda x: x}[side]
    sums = [
        sum(s * x for s, x in zip(signs, d, strict=True))
        for signs in itertools.product((1, -1), repeat=n)
    ]
    want = np.mean([statistic(x) >= statistic(sum(d)) - 1e-9 for x in sums])
    assert sign_flip(d, side=side) == pytest.approx(want)


def test_sign_flip_agrees_with_scipy_on_many_seeds_and_is_reproducible() -> None:
    d = np.random.default_rng(0).normal(0.35, 1, 40)
    want = scipy.stats.permutation_test(
        (d,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    ).pvalue
    assert sign_flip(d) == pytest.approx(want, abs=4 * math.sqrt(2 * want / 20_000))
    assert sign_flip(d, seed=3) == sign_flip(d, seed=3)


def test_equal_differences_tie_exactly() -> None:
    assert sign_flip([0.1] * 3) == 2 / 8
    assert sign_flip([0.0] * 4) == 1.0


def test_t_interval_is_scipys() -> None:
    d = np.random.default_rng(2).normal(0.2, 0.5, 7)
    want = scipy.stats.ttest_1samp(d, 0.0)
    assert t_interval(d, 0.1) == pytest.approx(tuple(want.confidence_interval(0.9)), rel=1e-9)


def test_only_common_completed_seeds_are_compared_in_order() -> None:
    arm, base = {3: 1.0, 1: 2.0, 2: None, 9: 5.0}, {1: 1.5, 2: 1.0, 3: 0.25, 4: 1.0}
    assert differences(arm, base).tolist() == [0.5, 0.75]
    assert differences({1: None}, {1: 1.0}).size == 0


def test_intervals_cover_their_nominal_share() -> None:
    rng = np.random.default_rng(4)
    d = rng.normal(0.3, 1.0, (4000, 4))
    hits = [low <= 0.3 <= high for low, high in map(t_interval, d)]
    assert 0.94 <= np.mean(hits) <= 0.96
