# SPDX-License-Identifier: Apache-2.0
"""Two one-sided tests against scipy, and their error rates."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxlm.research.stats.equivalence import tost


def test_p_values_are_those_of_two_one_sided_t_tests() -> None:
    d = np.random.default_rng(0).normal(0.1, 0.3, 9)
    found = tost(d, 0.4)
    below = scipy.stats.ttest_1samp(d, 0.4, alternative="less").pvalue
    above = scipy.stats.ttest_1samp(d, -0.4, alternative="greater").pvalue
    assert found.p_non_inferior == pytest.approx(below)
    assert found.p_equivalent == pytest.approx(max(below, above))


def test_non_inferior_is_an_upper_bound_below_the_margin() -> None:
    for seed in range(50):
        d = np.random.default_rng(seed).normal(0.2, 0.3, 5)
        found = tost(d, 0.4)
        assert found.is_non_inferior == (found.upper < 0.4)


def test_a_deletion_that_costs_the_margin_passes_in_at_most_alpha() -> None:
    d = np.random.default_rng(1).normal(0.5, 1.0, (3000, 5))
    assert np.mean([tost(x, 0.5).is_non_inferior for x in d]) <= 0.05 + 2 * math.sqrt(0.05 / 3000)
    free = np.random.default_rng(2).normal(0.0, 0.1, (200, 5))
    assert np.mean([tost(x, 0.5).is_equivalent for x in free]) > 0.99


def test_a_gain_is_non_inferior_and_not_equivalent() -> None:
    found = tost([-1.0, -1.1, -0.9, -1.05], 0.2)
    assert found.is_non_inferior and not found.is_equivalent


def test_one_seed_shows_nothing_and_a_margin_is_needed() -> None:
    assert not tost([0.0], 1.0).is_non_inferior
    with pytest.raises(ValueError, match="margin"):
        tost([0.0, 0.1], 0.0)
