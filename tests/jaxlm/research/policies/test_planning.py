# SPDX-License-Identifier: Apache-2.0
"""What a division of the budget may promise, and which one is chosen."""

import dataclasses

import pytest

from jaxlm.research.policies.planning import SHARES, Situation, divide, expected_gain, next_block
from jaxlm.research.stats.shrink import Prior

NOW = Situation(
    prior=Prior(0.25, 0.45, 0.30, 0.2, 0.2), sigma=0.05, sigma_early=0.07, tau=0.05,
    early_fraction=0.3, budget=58.0, num_ideas=40, num_waiting=29, block=32, false_discovery=0.17,
)  # fmt: skip


@pytest.mark.parametrize("fraction", [0.3, 1.0])
@pytest.mark.parametrize("share", SHARES)
def test_nothing_is_promised_beyond_what_all_good_ideas_are_worth(fraction, share):
    everything = 0.25 * 0.2 * (NOW.num_ideas + NOW.num_waiting)
    assert (
        expected_gain(NOW, fraction, share) <= 1.1 * everything
    )  # the sample is worth 1.095 times that


def test_ideas_that_one_cheap_block_tells_apart_are_all_screened():
    chosen = divide(NOW)
    ideas, cost = 0, 0.0
    while count := next_block(chosen.share * 58 - cost, chosen.fraction, 32, 40 - ideas)[0]:
        ideas, cost = ideas + count, cost + 0.31 * next_block(58, chosen.fraction, 32, count)[1]
    assert (chosen.fraction, ideas) == (0.3, 40)


def test_early_runs_that_tell_nothing_are_not_asked():
    misleading = dataclasses.replace(NOW, tau=2.0, num_waiting=0)
    assert divide(misleading).fraction == 1.0


def test_a_block_has_room_for_its_ideas_and_fits_the_budget():
    assert next_block(10.0, 0.3, 32, 100) == (29, 32)
    assert next_block(10.0, 0.3, 32, 4) == (4, 8)
    assert next_block(1.0, 0.3, 32, 4) == (0, 0)
    assert next_block(10.0, 0.3, 32, 0) == (0, 0)
