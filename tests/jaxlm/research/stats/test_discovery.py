# SPDX-License-Identifier: Apache-2.0
"""False-discovery control against scipy and by simulation."""

import numpy as np
import pytest
import scipy.stats

from jaxlm.research.stats.discovery import adjusted


def test_adjusted_p_values_are_scipys() -> None:
    p = np.random.default_rng(0).beta(0.5, 2, 40)
    np.testing.assert_allclose(adjusted(p), scipy.stats.false_discovery_control(p), rtol=1e-12)
    assert adjusted([]).size == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        adjusted([0.5, 1.5])


def campaigns(count: int, ideas: int) -> tuple[np.ndarray, np.ndarray]:
    """(p-values, which are null): 30 % real ones."""
    rng = np.random.default_rng(1)
    is_null = rng.random((count, ideas)) < 0.7
    z = rng.normal(size=(count, ideas)) - np.where(is_null, 0.0, 3.0)
    return scipy.stats.norm.cdf(z), is_null


def test_the_share_of_false_discoveries_is_kept() -> None:
    rates, found = [], 0
    for p, is_null in zip(*campaigns(500, 50), strict=True):
        hit = adjusted(p) <= 0.1
        rates.append((hit & is_null).sum() / max(1, hit.sum()))
        found += (hit & ~is_null).sum()
    assert np.mean(rates) <= 0.1 + 2 * np.std(rates) / np.sqrt(len(rates))
    assert found > 500  # and it does find
