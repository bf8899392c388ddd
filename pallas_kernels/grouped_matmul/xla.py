# SPDX-License-Identifier: Apache-2.0
"""Grouped matmul for backends without a kernel.

On GPUs it is XLA's own ragged product.  On CPUs XLA would multiply every row by every matrix, with a
copy of x for each; there the visits of schedule.py are made one by one, each a product of a tile of
rows, in which the rows of other groups are zero, with one matrix: 6 ms in the place of 85 for both
passes over 8 groups of 256 rows, 128 to 256, on two busy cores.

Legend: R rows, sorted by group, tiles of r  E groups  D width of x  F width of y  M visits
        X any width
"""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul.schedule import Visits, visits

TILE = 64  # rows


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """(R, F) in the dtype of x; sums in f32."""
    arrays = map(jnp.asarray, (x_RD, w_EDF, sizes_E))
    return jax.lax.platform_dependent(*arrays, cpu=_by_visits, default=_ragged)


def _ragged(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    y_RF = jax.lax.ragged_dot(x_RD, w_EDF, sizes_E, preferred_element_type=jnp.float32)
    # what it gives beyond the last group is not promised to be zero
    is_in_R1 = jnp.arange(len(x_RD))[:, None] < jnp.sum(sizes_E)
    return jnp.where(is_in_R1, y_RF, 0.0).astype(x_RD.dtype)


@jax.custom_vjp
def _by_visits(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    return _product(x_RD, w_EDF, sizes_E).astype(x_RD.dtype)


def _forward(x_RD, w_EDF, sizes_E):  # type: ignore[no-untyped-def]
    return _by_visits(x_RD, w_EDF, sizes_E), (x_RD, w_EDF, sizes_E)


def _backward(saved, dy_RF):  # type: ignore[no-untyped-def]
    x_RD, w_EDF, sizes_E = saved
    dx_RD = _product(dy_RF, w_EDF.swapaxes(1, 2), sizes_E).astype(x_RD.dtype)
    return dx_RD, _outer(x_RD, dy_RF, sizes_E, w_EDF), None


_by_visits.defvjp(_forward, _backward)


def _plan(sizes_E: jax.Array, rows: int) -> tuple[Visits, int]:
    """Visits of tiles and the rows of a tile; all rows are of some tile, none of two."""
    tile = min(TILE, rows)
    return visits(sizes_E, rows, tile, visit_empty=False), tile


def _tile(x_RX: jax.Array, visit: Visits, tile: int) -> jax.Array:
    """The rows of a visit's tile, with zeros in the place of other groups' rows."""
    first = visit.tile_M * tile
    x_rX = jax.lax.dynamic_slice_in_dim(x_RX, first, tile)
    row_r1 = first + jnp.arange(tile)[:, None]
    return jnp.where((row_r1 >= visit.start_M) & (row_r1 < visit.stop_M), x_rX, 0)


def _padded(x_RX: jax.Array, tile: int) -> jax.Array:
    return jnp.pad(x_RX, ((0, -len(x_RX) % tile), (0, 0)))


def _product(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    plan, tile = _plan(sizes_E, len(x_RD))
    whole_RD = _padded(x_RD, tile)
    dot = partial(jnp.dot, preferred_element_type=jnp.float32)

    def add(y_RF: jax.Array, visit: Visits) -> tuple[jax.Array, None]:
        y_rF = dot(_tile(whole_RD, visit, tile), w_EDF[visit.group_M])
        first = visit.tile_M * tile
        old_rF = jax.lax.dynamic_slice_in_dim(y_RF, first, tile)
        return jax.lax.dynamic_update_slice_in_dim(y_RF, old_rF + y_rF, first, 0), None

    zeros_RF = jnp.zeros((len(whole_RD), w_EDF.shape[2]), jnp.float32)
    return jax.lax.scan(add, zeros_RF, plan)[0][: len(x_RD)]


def _outer(x_RD: jax.Array, dy_RF: jax.Array, sizes_E: jax.Array, w_EDF: jax.Array) -> jax.Array:
    plan, tile = _plan(sizes_E, len(x_RD))
    whole_RD, whole_RF = _padded(x_RD, tile), _padded(dy_RF, tile)
    dot = partial(jnp.dot, preferred_element_type=jnp.float32)

    def add(dw_EDF: jax.Array, visit: Visits) -> tuple[jax.Array, None]:
        dy_rF = jax.lax.dynamic_slice_in_dim(whole_RF, visit.tile_M * tile, tile)
        dw_DF = dot(_tile(whole_RD, visit, tile).T, dy_rF)
        return dw_EDF.at[visit.group_M].add(dw_DF), None

    zeros_EDF = jnp.zeros(w_EDF.shape, jnp.float32)
    return jax.lax.scan(add, zeros_EDF, plan)[0].astype(w_EDF.dtype)
