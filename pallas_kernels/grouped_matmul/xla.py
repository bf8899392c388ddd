# SPDX-License-Identifier: Apache-2.0
"""Grouped matmul for backends without a kernel: XLA's own ragged product.

Legend: R rows, sorted by group  E groups  D width of x  F width of y
"""

import jax
import jax.numpy as jnp


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """(R, F) in the dtype of x; sums in f32."""
    y_RF = jax.lax.ragged_dot(x_RD, w_EDF, sizes_E, preferred_element_type=jnp.float32)
    # what it gives beyond the last group is not promised to be zero
    is_in_R1 = jnp.arange(len(x_RD))[:, None] < jnp.sum(sizes_E)
    return jnp.where(is_in_R1, y_RF, 0.0).astype(x_RD.dtype)
