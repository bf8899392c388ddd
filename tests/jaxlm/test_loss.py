# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy sums against a loop in float64.

Legend: B batch  T positions  V vocabulary
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.loss import LossSums, cross_entropy


def expected_sums(logits_BTV, targets_BT, weights_BT) -> tuple[float, float, float, float]:
    nats = squares = correct = tokens = 0.0
    for at in np.ndindex(targets_BT.shape):
        z = np.asarray(logits_BTV[at], np.float64)
        log_normaliser = np.logaddexp.reduce(z)
        nats -= weights_BT[at] * (z[targets_BT[at]] - log_normaliser)
        squares += weights_BT[at] * log_normaliser**2
        correct += weights_BT[at] * (np.argmax(z) == targets_BT[at])
        tokens += weights_BT[at]
    return nats, squares, correct, tokens


def random_case(B: int, T: int, V: int, scale: float = 1.0):
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(B, T, V))).astype(np.float32)
    weights = rng.choice([0.0, 0.25, 1.0], size=(B, T)).astype(np.float32)
    return logits, rng.integers(V, size=(B, T)), weights


@pytest.mark.parametrize("shape", [(2, 7, 13), (1, 1, 1), (3, 5, 2), (0, 4, 3)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_sums_agree_with_numpy(shape, scale):
    """300: exponentials of the logits themselves would overflow f32."""
    case = random_case(*shape, scale)
    # at most 35 terms: the logarithm and the sum round by 2^-24 each
    sums = cross_entropy(*case, z_loss=0.5)
    nats, squares, *_ = expected = expected_sums(*case)
    expected = (*expected, nats + 0.5 * squares)
    np.testing.assert_allclose(sums[:5], expected, rtol=3e-6, atol=1e-6)
    assert sums.routing is None


def test_sums_of_parts_add_up_to_those_of_the_batch():
    case = random_case(4, 7, 13)
    parts = [cross_entropy(*(x[m::2] for x in case)) for m in range(2)]
    total = jax.tree.map(jnp.add, *parts)
    np.testing.assert_allclose(total[:5], cross_entropy(*case)[:5], rtol=1e-6)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    sums = cross_entropy(jnp.zeros((2, 3, 50)), jnp.zeros((2, 3), int), jnp.ones((2, 3)))
    assert float(sums.nats / sums.tokens) == pytest.approx(np.log(50), rel=1e-6)


def test_positions_without_weight_have_no_gradient():
    logits, targets, weights = random_case(2, 7, 13)
    grads = jax.grad(lambda z: cross_entropy(z, targets, weights).nats)(logits)
    np.testing.assert_array_equal(np.abs(grads).sum(-1) > 0, weights > 0)


def test_the_gradient_is_the_weighted_probability_minus_the_target():
    logits, targets, weights = random_case(2, 7, 13)
    grads = jax.grad(lambda z: cross_entropy(z, targets, weights).nats)(logits)
    odds = np.exp(logits.astype(np.float64))
    expected = odds / odds.sum(-1, keepdims=True) - np.eye(13)[targets]
    np.testing.assert_allclose(grads, expected * weights[..., None], rtol=1e-5, atol=1e-7)


def test_a_batch_without_weights_sums_to_zero():
    logits, targets, weights = random_case(2, 7, 13)
    assert cross_entropy(logits, targets, 0 * weights) == LossSums(0, 0, 0, 0, 0)
