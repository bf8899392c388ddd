# SPDX-License-Identifier: Apache-2.0
"""The luck of combined arms is that of a normal field, given what each idea's own was."""

import numpy as np
import pytest

from jaxlm.research.luck import FRESH, SPREAD, Luck

SIZES = np.array([0.01, 0.02, 0.03, 0.02, 0.015])  # of each idea's own luck
NUM_SEEDS = 16


@pytest.fixture(scope="module")
def luck() -> Luck:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.05, (1, NUM_SEEDS, 1))
    own = rng.normal(0, 1, (len(SIZES) + 1, NUM_SEEDS, 1)) * np.array([0, *SIZES])[:, None, None]
    return Luck(2 + common + own * np.array([0.5, 1.0]))  # at half and at the end of training


def covariance(luck: Luck, a: frozenset[int], b: frozenset[int]) -> float:
    """Of Z(a) - Z({}) and Z(b) - Z({}), by the definition."""
    z = lambda x, y: luck.variance * np.prod([1 - luck.u[i] for i in x ^ y])
    nothing: frozenset[int] = frozenset()
    return float(z(a, b) - z(a, nothing) - z(nothing, b) + z(nothing, nothing))


def test_an_idea_alone_has_the_luck_of_its_run(luck: Luck) -> None:
    for idea in range(len(SIZES)):
        for seed in range(NUM_SEEDS):
            assert luck.of([idea], seed, key=9) == pytest.approx(luck.alone[idea, seed], abs=1e-12)
    assert not luck.of([], 3, key=9).any()


def test_the_spread_of_the_field_is_that_of_the_runs(luck: Luck) -> None:
    spread = luck.alone[:, :, -1].var(axis=1, ddof=1)
    assert luck.variance == pytest.approx(SPREAD * spread.mean())
    found = [covariance(luck, one, one) for one in (frozenset({i}) for i in range(len(SIZES)))]
    assert found == pytest.approx(np.minimum(spread, 2 * luck.variance))  # no more than two draws


@pytest.mark.parametrize("ideas", [(0, 1), (1, 2, 3), (0, 1, 2, 3, 4)])
def test_together_they_are_a_normal_draw_given_each_ones_own(
    luck: Luck, ideas: tuple[int, ...]
) -> None:
    """Mean and variance against the textbook's, with the whole covariance matrix written out."""
    arm, singles = frozenset(ideas), [frozenset({i}) for i in range(len(SIZES))]
    among = np.array([[covariance(luck, a, b) for b in singles] for a in singles])
    weights = np.linalg.solve(among, [covariance(luck, arm, one) for one in singles])
    left = covariance(luck, arm, arm) - weights @ among @ weights
    draws = np.array([luck.of(ideas, 5, key)[-1] for key in range(4000)])
    drawn, expected = FRESH**2 * left, weights @ luck.alone[:, 5, -1]
    assert luck.foretold(ideas)[0] == pytest.approx(weights)
    assert luck.foretold(ideas)[1] == pytest.approx(left)
    assert draws.mean() == pytest.approx(expected, abs=4 * np.sqrt(drawn / 4000))
    assert draws.var() == pytest.approx(drawn, rel=0.15)


def test_arms_that_differ_by_one_idea_differ_by_about_its_luck(luck: Luck) -> None:
    draws = [(key % NUM_SEEDS, key) for key in range(2000)]
    few = np.array([luck.of([0, 2, 3], *draw)[-1] for draw in draws])
    more = np.array([luck.of([0, 1, 2, 3], *draw)[-1] for draw in draws])
    assert SIZES[1] < (more - few).std() < 1.5 * FRESH * SIZES[1]
