# SPDX-License-Identifier: Apache-2.0
"""Linear cross-entropy in plain jnp, logits whole: the definition.

    z = cap * tanh(x table^T / cap);  lse = logsumexp_v z
    loss = sum_R w (lse - z_target + z_loss * lse^2)           z-loss: arXiv:2204.02311 section 5

Numerics: the product in the dtype of x, its sums and everything after it in f32; near ln V = 11
bf16 values would be 1/16 apart.

Legend: R rows  D width  V vocabulary
"""

import jax
import jax.numpy as jnp

from pallas_kernels.cross_entropy.rows import LOWEST, CrossEntropy, Rows, Task, sums


def linear_cross_entropy(
    x_RD: jax.Array, table_VD: jax.Array, targets_R: jax.Array, weights_R: jax.Array, task: Task
) -> CrossEntropy:
    V = len(table_VD)
    z_RV = jnp.einsum(
        "RD,VD->RV", x_RD, table_VD.astype(x_RD.dtype), preferred_element_type=jnp.float32
    )
    if task.softcap is not None:
        z_RV = task.softcap * jnp.tanh(z_RV / task.softcap)
    index_1V = jnp.arange(V)[None]
    if task.num_valid is not None:
        z_RV = jnp.where(index_1V < task.num_valid, z_RV, LOWEST)
    inside_R = (targets_R >= 0) & (targets_R < V)
    hit_R1 = jnp.take_along_axis(z_RV, jnp.clip(targets_R, 0, V - 1)[:, None], axis=1)
    peak_R1 = jax.lax.stop_gradient(jnp.max(z_RV, axis=1, keepdims=True))
    rows = Rows(
        lse_r=jax.nn.logsumexp(z_RV, axis=1),
        hit_r=jnp.where(inside_R, hit_R1[:, 0], LOWEST),
        best_r=jnp.min(jnp.where(z_RV == peak_R1, index_1V, V), axis=1),
    )
    # by x and the table alone, as the other forms, which compute these gradients with the loss
    fixed = jax.lax.stop_gradient((weights_R, task.z_loss))
    found = sums(rows, targets_R, *fixed)
    return jax.lax.stop_gradient(found)._replace(loss=found.loss)
