# SPDX-License-Identifier: Apache-2.0
"""Confidence sequences: right for every n at once, by simulation and by direct integration."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxlm.research.stats.noise import Noise
from jaxlm.research.stats.sequential import confidence_sequence, e_value, half_width

KNOWN = Noise(1.0, math.inf)
G = (2 * math.log(20) + math.log1p(2 * math.log(20))) / 6  # prior variance of mu / sigma


@pytest.mark.parametrize("df", [0, 8, math.inf])
def test_looking_after_every_seed_keeps_the_false_positive_rate(df: float) -> None:
    """1000 A/A comparisons, each looked at after each of 30 seeds."""
    rng = np.random.default_rng(int(min(df, 99)))
    wrong = 0
    for _ in range(1000):
        noise = KNOWN if df == math.inf else None
        if df == 8:
            noise = Noise(math.sqrt(rng.chisquare(8) / 8), 8)
        d = rng.standard_normal(30)
        looks = (confidence_sequence(d[:n], noise=noise) for n in range(1, 31))
        wrong += any(low > 0 or high < 0 for low, high in looks)
    assert wrong / 1000 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_peeking_at_plain_t_intervals_does_not_keep_it() -> None:
    """The mistake that the sequence is for: the check above must be able to fail."""
    d = np.random.default_rng(0).standard_normal((1000, 30))
    n = np.arange(2, 31)
    mean = np.cumsum(d, 1)[:, 1:] / n
    sd = np.sqrt((np.cumsum(d**2, 1)[:, 1:] - n * mean**2) / (n - 1))
    t = np.abs(mean) / sd * np.sqrt(n)
    assert np.mean((t > scipy.stats.t.ppf(0.975, n - 1)).any(axis=1)) > 0.15


def test_known_noise_gives_the_normal_mixture_by_integration() -> None:
    d = np.random.default_rng(1).normal(0.8, 1, 5)

    def likelihood(mu: float) -> float:
        return float(scipy.stats.norm.pdf(d, mu).prod() * scipy.stats.norm.pdf(mu, 0, math.sqrt(G)))

    mixture = scipy.integrate.quad(likelihood, -10, 10)[0] / scipy.stats.norm.pdf(d).prod()
    assert e_value(d, noise=KNOWN) == pytest.approx(mixture, rel=1e-6)


def test_unknown_noise_gives_the_bayes_factor_of_the_t_test_by_integration() -> None:
    """t is noncentral t given mu / sigma, so the factor is a one-dimensional integral."""
    d = np.random.default_rng(2).normal(0.9, 1, 6)
    t = d.mean() / d.std(ddof=1) * math.sqrt(6)

    def density(delta: float) -> float:
        prior = scipy.stats.norm.pdf(delta, 0, math.sqrt(G))
        return float(scipy.stats.nct.pdf(t, 5, delta * math.sqrt(6)) * prior)

    want = scipy.integrate.quad(density, -8, 8)[0] / scipy.stats.t.pdf(t, 5)
    assert e_value(d) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("noise", [None, Noise(0.8, 5), KNOWN])
def test_the_interval_ends_where_the_evidence_is_one_in_alpha(noise: Noise | None) -> None:
    d = np.random.default_rng(3).normal(0.3, 1, 9)
    for end in confidence_sequence(d, noise=noise):
        assert e_value(d - end, noise=noise) == pytest.approx(20, rel=1e-9)


def test_pooled_noise_leads_from_unknown_to_known() -> None:
    widths = [
        half_width(8, 1.0, 0.05, Noise(1.0, df) if df else None) for df in (0, 5, 50, 1e7, math.inf)
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[3] == pytest.approx(widths[4], rel=1e-4)
    assert half_width(1, 0.0, 0.05, None) == math.inf
    with pytest.raises(ValueError, match="alpha"):
        half_width(8, 1.0, 1.5, None)
