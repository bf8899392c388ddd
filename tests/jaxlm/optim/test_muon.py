# SPDX-License-Identifier: Apache-2.0
"""Newton-Schulz against the same polynomials applied to float64 singular values."""

import jax
import numpy as np
import pytest

from jaxlm.optim.muon import newton_schulz
from tests.reference import optimizers

# Square, nearly square, and long enough for the iteration on the Gram matrix; both ways round.
SHAPES = [(3, 6, 6), (2, 7, 9), (3, 5, 8), (2, 4, 33), (3, 8, 5), (1, 33, 4), (2, 1, 7)]


def ill_conditioned(shape: tuple[int, int, int]) -> np.ndarray:
    """Layers of different size, with singular values from 1 down to 1e-3 of the greatest."""
    rng = np.random.default_rng(0)
    left, s, right = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    spread = np.geomspace(1, 1e-3, s.shape[1])
    layers = np.arange(1.0, shape[0] + 1)[:, None, None]
    return (layers * (left * spread) @ right).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5])
def test_each_layer_equals_the_float64_iteration(shape, steps):
    x = ill_conditioned(shape)
    actual = jax.jit(newton_schulz, static_argnums=1)(x, steps)
    expected = [optimizers.newton_schulz(layer.astype(np.float64), steps) for layer in x]
    # One step rounds to a few 1e-7.  An eigenvalue of the Gram matrix near zero is wrong by 6e-8
    # and grows by 3.4^2 a step: 6e-8 * 3.4^8 = 1e-3 before the last, which forgets all others.
    np.testing.assert_allclose(actual, expected, atol=1e-3 if steps == 5 else 1e-6)


@pytest.mark.parametrize("shape", [(2, 24, 30), (2, 24, 60)])
def test_singular_values_of_a_random_matrix_end_near_one(shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    s = np.linalg.svd(np.asarray(newton_schulz(x, 5)), compute_uv=False)
    assert s.min() > 0.6
    assert s.max() < 1.25


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 9)])
def test_a_layer_of_zeros_stays_zero_beside_one_that_is_not(shape):
    x = np.ones(shape, np.float32)
    x[0] = 0
    y = np.asarray(newton_schulz(x, 5))
    assert np.all(y[0] == 0)
    assert np.abs(y[1]).min() > 0
