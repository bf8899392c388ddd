# SPDX-License-Identifier: Apache-2.0
"""RMSNorm against its formula in float64.

Legend: D width
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.norm import RMSNorm


def expected_norm(x: np.ndarray, scale_D: np.ndarray, eps: float) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale_D


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2.0**-21), ("bfloat16", 2.0**-8)])
@pytest.mark.parametrize("D", [1, 7, 4096])
def test_values_agree_with_float64_up_to_the_last_rounding(dtype, bound, D):
    """Holds for bf16 at width 4096 only because the mean of squares is taken in f32."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + rng.normal(size=(5, D)), dtype)
    scale = rng.normal(1, 0.3, D).astype(np.float32)
    y = RMSNorm(0.5).apply({"params": {"scale": scale}}, x)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), expected_norm(x, scale, 0.5), rtol=bound)


def test_a_zero_vector_has_a_zero_norm_and_a_finite_gradient():
    def norm(x):
        return RMSNorm(1e-6).apply({"params": {"scale": jnp.ones(4)}}, x)

    x = jnp.zeros((2, 4))
    assert not norm(x).any()
    np.testing.assert_allclose(jax.grad(lambda x: norm(x).sum())(x), 1e3, rtol=1e-6)  # 1/sqrt(eps)


def test_the_scale_of_the_input_does_not_matter_without_epsilon():
    def norm(x):
        return RMSNorm(1e-30).apply({"params": {"scale": jnp.ones(6)}}, x)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32)
    np.testing.assert_allclose(norm(1000 * x), norm(x), rtol=1e-6)
