# SPDX-License-Identifier: Apache-2.0
"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * scale.  Source: arXiv:1910.07467.

Legend: D the last dimension, over which the mean runs
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn import init


class RMSNorm(nn.Module):
    """Normalises the last dimension.  Numerics: statistics in f32, result in the input's dtype."""

    eps: float
    axis: str = "norm"  # logical name of the scale's only dimension

    @nn.compact
    def __call__(self, x_D: jax.Array) -> jax.Array:
        scale_D = init.param(self, "scale", init.ones, x_D.shape[-1:], (self.axis,))
        x32_D = x_D.astype(jnp.float32)
        rstd = jax.lax.rsqrt(jnp.mean(x32_D * x32_D, axis=-1, keepdims=True) + self.eps)
        return (x32_D * rstd * jnp.broadcast_to(scale_D, x_D.shape)).astype(x_D.dtype)
