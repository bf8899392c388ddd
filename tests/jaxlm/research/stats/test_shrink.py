# SPDX-License-Identifier: Apache-2.0
"""Shrinkage: against numerical integration, and against the winner's curse."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxlm.research.stats.shrink import Prior, fit_prior, keep_set, posterior

PRIOR = Prior(0.2, 0.5, 0.3, 2.0)


@pytest.mark.parametrize("x", [-6.0, -1.0, 0.0, 0.4, 5.0])
@pytest.mark.parametrize("se", [0.1, 1.0, 4.0])
def test_posterior_is_the_integral(x: float, se: float) -> None:
    def slab(e: float) -> float:
        share = PRIOR.p_good if e < 0 else PRIOR.p_bad
        return float(
            share * scipy.stats.expon.pdf(abs(e), scale=2.0) * scipy.stats.norm.pdf(x, e, se)
        )

    def over(f: object, low: float, high: float) -> float:
        return float(
            scipy.integrate.quad(f, low, high, points=[np.clip(x, low, high)], limit=300)[0]
        )

    good, bad = over(slab, -60, 0), over(slab, 0, 60)
    null = PRIOR.p_null * scipy.stats.norm.pdf(x, 0, se)
    total = good + bad + null
    mean = over(lambda e: e * slab(e), -60, 60) / total
    post = posterior(x, se, PRIOR)
    assert post.p_good == pytest.approx(good / total, rel=1e-5)
    assert post.mean == pytest.approx(mean, rel=1e-5, abs=1e-7)
    assert post.upside == pytest.approx(
        -over(lambda e: e * slab(e), -60, 0) / total, rel=1e-5, abs=1e-7
    )
    assert post.log_evidence == pytest.approx(np.log(total), abs=1e-5)


def ideas(count: int, seed: int, prior: Prior) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1, 0, 1], count, p=[prior.p_good, prior.p_null, prior.p_bad])
    return sign * rng.exponential(prior.mean_effect, count)


@pytest.mark.parametrize("se", [0.5, 2.0, 4.0])
def test_shrinkage_takes_the_inflation_out_of_what_was_selected(se: float) -> None:
    effect = ideas(100_000, 1, PRIOR)
    x = effect + np.random.default_rng(2).normal(0, se, effect.size)
    post = posterior(x, se, PRIOR)
    kept = keep_set(post, 0.2)
    naive, shrunken = x[kept].sum() / effect[kept].sum(), post.mean[kept].sum() / effect[kept].sum()
    standard_error = np.sqrt(kept.sum()) * 2 * min(se, 2.0) / -effect[kept].sum()
    assert shrunken == pytest.approx(1.0, abs=4 * standard_error)
    assert naive > shrunken
    assert np.mean(effect[kept] >= 0) == pytest.approx(0.2, abs=4 * 0.4 / np.sqrt(kept.sum()))


def test_the_prior_is_found_again_from_the_ideas() -> None:
    effect = ideas(4000, 3, PRIOR)
    x = effect + np.random.default_rng(4).normal(0, 0.5, effect.size)
    fitted = fit_prior(x, 0.5, Prior(0.3, 0.3, 0.4, 0.5), steps=300)
    assert fitted.p_good == pytest.approx(PRIOR.p_good, abs=0.05)
    assert fitted.mean_effect == pytest.approx(PRIOR.mean_effect, rel=0.15)
    assert fitted.harm == pytest.approx(PRIOR.harm, rel=0.15)


def test_small_gains_are_seen_beside_large_harms() -> None:
    """As on a tuned model: with one size for both, 0.3 here, small gains would pass for nothing."""
    rng = np.random.default_rng(0)
    truth = np.concatenate([-rng.exponential(0.02, 30), rng.exponential(0.3, 30)])
    x = truth + 0.01 * rng.standard_normal(60)
    fitted = fit_prior(x, 0.01, Prior(mean_effect=0.2))
    assert fitted.mean_effect < 0.05 and fitted.harm > 0.15
    assert posterior(-0.02, 0.01, fitted).p_good > 0.7
    alike = Prior(0.3, 0.35, 0.35, 0.2)
    assert posterior(-0.02, 0.01, alike).p_good < 0.5


def test_few_ideas_leave_the_shares_near_the_anchor() -> None:
    fitted = fit_prior([-1.0], 1.0, PRIOR, weight=1000.0)
    assert fitted.p_good == pytest.approx(PRIOR.p_good, abs=2e-3)


def test_keep_set_takes_the_most_that_the_rate_allows() -> None:
    post = posterior([-9.0, -4.0, -0.5, 3.0], 1.0, PRIOR)
    assert keep_set(post, 1.0).tolist() == [True, True, post.mean[2] < 0, False]
    assert keep_set(post, 1e-3).tolist() == [True, False, False, False]
    assert keep_set(post, 1.0, np.array([False, True, False, True])).tolist() == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("prior", [Prior(0.4, 0.4, 0.2, 2.0), Prior(0.1, 0.4, 0.5, 2.0)])
def test_where_nothing_does_exactly_nothing_the_rate_holds_and_more_is_kept(prior: Prior) -> None:
    """What passes for nothing is tiny, and as often good as other ideas are."""
    rng = np.random.default_rng(5)
    effect = ideas(100_000, 6, prior)
    tiny = np.where(rng.random(effect.size) < prior.good_of_active, -1e-6, 1e-6)
    effect = np.where(effect == 0, tiny, effect)
    post = posterior(effect + rng.normal(0, 2.0, effect.size), 2.0, prior)
    kept = keep_set(post, 0.2, null_helps=prior.good_of_active)
    assert np.mean(effect[kept] >= 0) == pytest.approx(0.2, abs=4 * 0.4 / np.sqrt(kept.sum()))
    assert kept.sum() > 1.1 * keep_set(post, 0.2).sum()


def test_bad_priors_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        Prior(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="mean_effect"):
        Prior(mean_effect=0.0)
    with pytest.raises(ValueError, match="standard errors"):
        posterior([0.0], [0.0], PRIOR)
