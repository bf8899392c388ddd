# SPDX-License-Identifier: Apache-2.0
"""Tokens to a loss, and their ratio: on curves whose crossing is known."""

import math

import numpy as np
import pytest

from jaxlm.research.stats.tokens import ratio_of, smoothed, tokens_to

TOKENS = [100.0 * i for i in range(1, 21)]


def test_the_crossing_of_a_straight_curve_is_found_exactly() -> None:
    losses = [5 - t / 1000 for t in TOKENS]  # smoothing leaves a line alone
    assert tokens_to(TOKENS, losses, 3.73) == pytest.approx(1270.0)
    assert tokens_to(TOKENS, losses, losses[-1]) == pytest.approx(TOKENS[-1])


def test_it_is_the_first_crossing_and_never_where_there_is_none() -> None:
    losses = [5.0, 4.0, 3.0, 2.0, 3.0, 4.0, 3.0, 2.0]
    assert tokens_to(TOKENS[:8], losses, 3.4) < 400
    assert tokens_to(TOKENS[:8], losses, 1.9) == math.inf
    assert tokens_to(TOKENS[:8], losses, 6.0) == TOKENS[0]


def test_one_lucky_evaluation_is_no_crossing() -> None:
    losses = [5 - t / 1000 for t in TOKENS]
    lucky = list(losses)
    lucky[4] -= 1.0  # below the target for one evaluation
    raw_first = next(t for t, loss in zip(TOKENS, lucky, strict=True) if loss <= 3.7)
    assert raw_first == 500.0
    assert tokens_to(TOKENS, lucky, 3.7) == pytest.approx(1300.0)
    assert smoothed([1.0, 4.0, 1.0]) == [1.0, 2.0, 1.0]


def test_an_arm_against_itself_needs_as_many_tokens() -> None:
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(5):
        losses = list(2 + 3 * np.array(TOKENS) ** -0.3 + rng.normal(0, 0.02, len(TOKENS)))
        reached.append(tokens_to(TOKENS, losses, losses[-1]))
    found = ratio_of(reached, reached, [TOKENS[-1]] * 5)
    assert (found.ratio, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_the_interval_is_that_of_the_logarithms_and_covers() -> None:
    """Log-normal ratios around 0.6: 95 % of intervals hold it, within two standard errors."""
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(1000):
        arm = 0.6 * np.exp(rng.normal(0, 0.2, 6)) * 1000
        found = ratio_of(list(arm), [1000.0] * 6, [2000.0] * 6)
        hits.append(found.low <= 0.6 <= found.high)
    assert 0.936 <= np.mean(hits) <= 0.964


def test_an_arm_that_does_not_arrive_is_never_called_better() -> None:
    found = ratio_of([300.0, math.inf, 310.0], [1000.0] * 3, [900.0] * 3)
    assert found.not_reached == 1 and found.low < 1 and found.high == math.inf
    assert found.ratio == pytest.approx((0.3 * 0.9 * 0.31) ** (1 / 3))
    with pytest.raises(ValueError, match="own final loss"):
        ratio_of([1.0], [math.inf], [2.0])
