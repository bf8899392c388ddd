# SPDX-License-Identifier: Apache-2.0
"""Nats into tokens: on a curve whose law is known."""

import math

import numpy as np
import pytest

from jaxlm.research.stats.exchange import PowerLaw, fit_power_law, savings

TOKENS = [1e6, 2e6, 4e6, 8e6, 16e6]
LAW = PowerLaw(1.8, 30.0, 0.25)


def test_the_law_is_found_again() -> None:
    law = fit_power_law(TOKENS, [LAW(t) for t in TOKENS])
    assert law.alpha == pytest.approx(0.25, abs=0.006)
    assert law(6e6) == pytest.approx(LAW(6e6), abs=1e-4)


def test_an_effect_is_the_tokens_that_the_baseline_would_need() -> None:
    at, more = 4e6, 5e6  # an arm as good as a quarter more tokens
    effect = LAW(more) - LAW(at)
    found = savings(TOKENS, [LAW(t) for t in TOKENS], at, effect, (effect * 1.2, effect * 0.8))
    assert found.tokens == pytest.approx(more, rel=0.01)
    assert found.share == pytest.approx(0.2, abs=0.01)
    assert found.low < found.share < found.high


def test_a_loss_costs_and_nothing_reaches_below_the_floor() -> None:
    losses = [LAW(t) for t in TOKENS]
    assert savings(TOKENS, losses, 4e6, 0.05, (0.04, 0.06)).share < 0
    beyond = savings(TOKENS, losses, 4e6, -2.0, (-2.1, -1.9))
    assert (beyond.tokens, beyond.share) == (math.inf, 1.0)


def test_intervals_cover_the_true_share_with_a_noisy_curve_and_effect() -> None:
    at, effect, sd = 4e6, LAW(5e6) - LAW(4e6), 0.004
    hits = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        tokens = np.repeat(TOKENS, 3)
        losses = [LAW(t) + rng.normal(0, sd) for t in tokens]
        x = effect + rng.normal(0, sd)
        found = savings(list(tokens), losses, at, x, (x - 1.96 * sd, x + 1.96 * sd))
        hits.append(found.low <= 0.2 <= found.high)
    assert np.mean(hits) >= 0.9


def test_curves_that_tell_no_rate_are_refused() -> None:
    with pytest.raises(ValueError, match="3 lengths"):
        fit_power_law([1e6, 2e6, 2e6], [3.0, 2.9, 2.8])
    with pytest.raises(ValueError, match="does not fall"):
        fit_power_law([1e6, 2e6, 4e6], [2.0, 2.1, 2.2])
