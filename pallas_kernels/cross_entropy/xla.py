# SPDX-License-Identifier: Apache-2.0
"""Linear cross-entropy for backends without a kernel: one chunk of rows has its logits at a time.

The gradients of a chunk follow while its logits are there, so that no product is done twice.

Legend: R rows, n chunks of r  D width  V vocabulary
"""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.cross_entropy.rows import (
    LOWEST,
    Rows,
    Slices,
    Task,
    chunks,
    merge,
    pulls,
    whole,
)

CHUNK_LOGITS = 2**24  # of one chunk, 64 MiB in f32

_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def statistics(x_RD: jax.Array, table_VD: jax.Array, targets_R: jax.Array, task: Task) -> Rows:
    """Statistics of all rows: what evaluation needs."""
    table_VD = table_VD.astype(x_RD.dtype)

    def one(chunk: tuple[jax.Array, jax.Array]) -> Rows:
        x_rD, targets_r = chunk
        return _rows(_logits(x_rD, table_VD, task)[0], targets_r, task)

    rows = _chunk_rows(table_VD)
    return whole(jax.lax.map(one, (chunks(x_RD, rows), chunks(targets_R, rows))), len(x_RD))


def statistics_and_gradients(
    x_RD: jax.Array, table_VD: jax.Array, targets_R: jax.Array, weights_R: jax.Array, task: Task
) -> tuple[Rows, jax.Array, jax.Array]:
    """Statistics of all rows, dx (R, D) in the dtype of x, dtable (V, D) in f32."""
    rounded_VD = table_VD.astype(x_RD.dtype)
    index_1V = jnp.arange(len(table_VD))[None]

    def one(dtable_VD: jax.Array, chunk: tuple) -> tuple[jax.Array, tuple[Rows, jax.Array]]:
        x_rD, targets_r, weights_r = chunk
        z_rV, slope_rV = _logits(x_rD, rounded_VD, task)
        rows = _rows(z_rV, targets_r, task)
        factors = pulls(rows, weights_r, task)
        softmax_rV = jnp.exp(z_rV - rows.lse_r[:, None]) * slope_rV
        up_rV = jnp.where(index_1V == targets_r[:, None], factors.up_r[:, None], 0.0)
        dz_rV = (softmax_rV * factors.down_r[:, None] - up_rV).astype(x_RD.dtype)
        dx_rD = _product("rV,VD->rD", dz_rV, rounded_VD)
        if task.axis_name is not None:
            dx_rD = jax.lax.psum(dx_rD, task.axis_name)
        dtable_VD += _product("rV,rD->VD", dz_rV, x_rD)
        return dtable_VD, (rows, dx_rD.astype(x_RD.dtype))

    split = partial(chunks, rows=_chunk_rows(table_VD))
    dtable_VD = jnp.zeros(table_VD.shape, jnp.float32)
    dtable_VD, (rows_nr, dx_nrD) = jax.lax.scan(
        one, dtable_VD, (split(x_RD), split(targets_R), split(weights_R))
    )
    return *whole((rows_nr, dx_nrD), len(x_RD)), dtable_VD


def _chunk_rows(table_VD: jax.Array) -> int:
    return max(1, CHUNK_LOGITS // len(table_VD))


def _logits(
    x_rD: jax.Array, table_VD: jax.Array, task: Task
) -> tuple[jax.Array, jax.Array | float]:
    """Capped and masked logits of a chunk, and the slope of the cap."""
    z_rV = _product("rD,VD->rV", x_rD, table_VD)
    slope_rV: jax.Array | float = 1.0
    if task.softcap is not None:
        bent_rV = jnp.tanh(z_rV / task.softcap)
        z_rV, slope_rV = task.softcap * bent_rV, 1.0 - bent_rV * bent_rV
    if task.num_valid is not None:
        z_rV = jnp.where(jnp.arange(len(table_VD))[None] < task.num_valid, z_rV, LOWEST)
    return z_rV, slope_rV


def _rows(z_rV: jax.Array, targets_r: jax.Array, task: Task) -> Rows:
    V = z_rV.shape[1]
    index_1V = jnp.arange(V)[None]
    peak_r = jnp.max(z_rV, axis=1)
    is_target_rV = index_1V == targets_r[:, None]
    slices = Slices(
        peak_r,
        jnp.sum(jnp.exp(z_rV - peak_r[:, None]), axis=1),
        jnp.max(jnp.where(is_target_rV, z_rV, LOWEST), axis=1),
        jnp.min(jnp.where(z_rV == peak_r[:, None], index_1V, V), axis=1),
    )
    return merge(Slices(*[a_r[None] for a_r in slices]), V, task.axis_name)
