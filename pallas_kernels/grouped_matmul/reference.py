# SPDX-License-Identifier: Apache-2.0
"""Grouped matmul in plain jnp: the definition.

    y_r = x_r w_e  for the rows r of group e;  y_r = 0 beyond the last group

Legend: R rows, sorted by group  E groups  D width of x  F width of y
"""

import jax
import jax.numpy as jnp


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """(R, F) in the dtype of x; sums in f32.  Every row meets every matrix: for small sizes."""
    stop_E = jnp.cumsum(sizes_E)
    row_1R = jnp.arange(len(x_RD))[None]
    is_in_ER = (row_1R < stop_E[:, None]) & (row_1R >= (stop_E - sizes_E)[:, None])
    x_ERD = jnp.where(is_in_ER[:, :, None], x_RD[None], 0)
    y_RF = jnp.einsum("ERD,EDF->RF", x_ERD, w_EDF, preferred_element_type=jnp.float32)
    return y_RF.astype(x_RD.dtype)
