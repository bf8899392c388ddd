# SPDX-License-Identifier: Apache-2.0
"""Hadamard designs: orthogonal, aliased as they should be, and estimated as least squares does."""

import numpy as np
import pytest

from jaxlm.research.policies.designs import design, effects, hadamard, order_for, orders


def test_every_order_is_a_hadamard_matrix() -> None:
    assert set(range(4, 85, 4)) - set(orders()) <= {52}
    for m in orders():
        h = hadamard(m)
        assert set(np.unique(h)) <= {-1, 1} and (h[:, 0] == 1).all()
        np.testing.assert_array_equal(h.T @ h, m * np.eye(m, dtype=int))


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order 6"):
        hadamard(6)
    with pytest.raises(ValueError, match="8 ideas"):
        design([str(i) for i in range(8)], np.random.default_rng(0), 8)
    assert (order_for(3), order_for(7, 1), order_for(11)) == (4, 12, 12)


@pytest.mark.parametrize("foldover", [False, True])
def test_each_idea_is_in_half_of_the_runs_and_each_pair_in_a_quarter(foldover: bool) -> None:
    ideas = [f"i{k}" for k in range(11)]
    arms = design(ideas, np.random.default_rng(1), 12, foldover=foldover).arms
    assert len(arms) == (24 if foldover else 12)
    for i, a in enumerate(ideas):
        assert sum(a in arm for arm in arms) == len(arms) / 2
        for b in ideas[:i]:
            assert sum({a, b} <= arm for arm in arms) == len(arms) / 4


def test_a_foldover_frees_effects_from_interactions_of_two() -> None:
    rng = np.random.default_rng(2)
    ideas, e, pair = list("abcdefg"), rng.normal(size=7), np.triu(rng.normal(size=(7, 7)), 1)
    for foldover in (True, False):
        plan = design(ideas, np.random.default_rng(3), 8, foldover=foldover)
        x = np.array([[2.0 * (i in arm) - 1 for i in ideas] for arm in plan.arms])
        y = x @ e / 2 + np.einsum("mi,ij,mj->m", x, pair, x)
        error = np.abs(effects(plan, list(y), 0.5).estimate - e).max()
        assert error < 1e-12 if foldover else error > 0.1


def test_estimates_and_their_noise_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(4)
    plan = design(list("abcdefghi"), rng, 16)
    y = rng.normal(size=16)
    x = np.array([[1.0, *(i in arm for i in plan.ideas)] for arm in plan.arms])
    beta, rest, *_ = np.linalg.lstsq(x, y)
    covariance = np.linalg.inv(x.T @ x)
    found = effects(plan, list(y), 0.5)
    np.testing.assert_allclose(found.estimate, beta[1:], atol=1e-12)
    np.testing.assert_allclose(found.information, 1 / np.diag(covariance)[1:])
    assert found.noise_square_sum == pytest.approx(rest[0])
    assert found.noise_df == 6


def test_missing_runs_give_what_a_bayesian_would_have_learnt() -> None:
    """The pseudo-observations, put back together with the prior, are the ridge posterior."""
    rng = np.random.default_rng(5)
    plan, ridge = design(list("abcdefg"), rng, 8), 0.7
    y = [None if "c" in arm else float(rng.normal()) for arm in plan.arms]
    there = [i for i, v in enumerate(y) if v is not None]
    x = np.array([[float(i in plan.arms[k]) for i in plan.ideas] for k in there])
    x -= x.mean(axis=0)
    target = np.array([y[k] for k in there], float)
    covariance = np.linalg.inv(x.T @ x + ridge**2 * np.eye(7))
    want = covariance @ x.T @ (target - target.mean())
    found = effects(plan, y, ridge)
    precision = found.information + ridge**2
    np.testing.assert_allclose(found.estimate * found.information / precision, want, atol=1e-7)
    assert found.information[plan.ideas.index("c")] < 1e-6  # never seen: nothing is known of it


def test_a_block_that_failed_tells_nothing() -> None:
    plan = design(["a", "b"], np.random.default_rng(6), 4)
    found = effects(plan, [None] * 4, 0.5)
    assert not found.estimate.any() and (found.information < 1e-6).all() and found.noise_df == 0
