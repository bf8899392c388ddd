# SPDX-License-Identifier: Apache-2.0
"""The TPU kernel of linear cross-entropy: one tile of the vocabulary per grid step.

A step does up to two things with its tile of the table, so that it is read once for both:

    next chunk of rows:      z = table x^T;  peak, total, hit, best  (rows.py)
    previous chunk of rows:  dz = softmax * down - onehot * up;  dtable += dz x;  dx += dz^T table

All tiles of logits stand transposed, (v, r): what is known per row is then a row of lanes, and the
dz of a tile is the left side of its product with x as it lies.

Of the previous chunk's tiles the last K are kept in memory: exp(z - peak so far) in x's dtype,
with that peak; they only need a factor per row.  The others are computed again.

Numerics: products in the dtype of x, sums in f32; logits, exponentials and statistics in f32.

Legend: r rows of a chunk  v one tile of the vocabulary  D width  K kept tiles
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.cross_entropy.rows import LOWEST

Ref = Any


class Next(NamedTuple):
    """Of the rows whose statistics are wanted."""

    x_rD: Ref
    targets_1r: Ref


class Prev(NamedTuple):
    """Of the rows whose gradients are wanted."""

    x_rD: Ref
    targets_1r: Ref
    lse_1r: Ref
    down_1r: Ref
    up_1r: Ref
    kept_vr: Ref
    peak_1r: Ref  # the peak that this kept tile was computed with
    dtable_vD: Ref


class Statistics(NamedTuple):
    peak_1r: Ref
    total_1r: Ref
    hit_1r: Ref
    best_1r: Ref
    kept_vr: Ref | None
    kept_peak_1r: Ref | None


class Gradients(NamedTuple):
    dx_rD: Ref
    dtable_vD: Ref


class Shape(NamedTuple):
    """What is known when the kernel is traced."""

    tiles: int  # of one part of the vocabulary
    kept_tiles: int
    columns: int  # rows of a chunk that are worked on at a time
    rows_in_table: int
    has_invalid: bool  # some rows of a tile are beyond the vocabulary
    softcap: float | None


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=exact, preferred_element_type=jnp.float32
    )


def _logits(
    table_vD: jax.Array, x_cD: jax.Array, num_valid: jax.Array, shape: Shape
) -> tuple[jax.Array, jax.Array | None]:
    """Capped logits (v, c) of some rows, LOWEST beyond the vocabulary, and the cap's slope."""
    z_vc = _dot(table_vD.astype(x_cD.dtype), x_cD, (1, 1))
    slope_vc = None
    if shape.softcap is not None:
        bent_vc = jnp.tanh(z_vc / shape.softcap)
        z_vc, slope_vc = shape.softcap * bent_vc, 1.0 - bent_vc * bent_vc
    if shape.has_invalid:
        z_vc = jnp.where(_index(z_vc) < num_valid, z_vc, LOWEST)
    return z_vc, slope_vc


def _index(z_vc: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, z_vc.shape, 0)


def _times(a_vc: jax.Array, slope_vc: jax.Array | None) -> jax.Array:
    return a_vc if slope_vc is None else a_vc * slope_vc


def _statistics(
    out: Statistics, rows: Next, table_vD: Ref, first: jax.Array, num_valid: jax.Array, shape: Shape
) -> None:
    """Adds one tile, tokens first.., to the statistics of the rows."""
    for start in range(0, rows.x_rD.shape[0], shape.columns):
        c = pl.ds(start, shape.columns)
        z_vc, slope_vc = _logits(table_vD[...], rows.x_rD[c, :], num_valid, shape)
        index_vc = _index(z_vc)
        column_max = partial(jnp.max, axis=0, keepdims=True)

        is_target_vc = index_vc == rows.targets_1r[:, c] - first
        hit_1c = column_max(jnp.where(is_target_vc, z_vc, LOWEST))
        out.hit_1r[:, c] = jnp.maximum(out.hit_1r[:, c], hit_1c)

        tile_peak_1c, old_peak_1c = column_max(z_vc), out.peak_1r[:, c]
        best_vc = jnp.where(z_vc == tile_peak_1c, index_vc, z_vc.shape[0])
        best_1c = first + jnp.min(best_vc, axis=0, keepdims=True)
        out.best_1r[:, c] = jnp.where(tile_peak_1c > old_peak_1c, best_1c, out.best_1r[:, c])

        peak_1c = jnp.maximum(old_peak_1c, tile_peak_1c)
        p_vc = jnp.exp(z_vc - peak_1c)
        total_1c = out.total_1r[:, c] * jnp.exp(old_peak_1c - peak_1c)
        out.total_1r[:, c] = total_1c + jnp.sum(p_vc, axis=0, keepdims=True)
        out.peak_1r[:, c] = peak_1c
        if out.kept_vr is not None and out.kept_peak_1r is not None:
            # before the first kept tile, its place is written in vain: no branch in the schedule
            out.kept_vr[:, c] = _times(p_vc, slope_vc).astype(out.kept_vr.dtype)
            out.kept_peak_1r[:, c] = peak_1c


def _logit_gradients(
    dz_vr: Ref, rows: Prev, table_vD: Ref, first: jax.Array, num_valid: jax.Array, shape: Shape
) -> None:
    """dz of one tile: from the kept exponentials if it is one of the kept, else computed again."""

    def write(softmax: Any) -> None:
        for start in range(0, dz_vr.shape[1], shape.columns):
            c = pl.ds(start, shape.columns)
            q_vc = softmax(c)
            is_target_vc = _index(q_vc) == rows.targets_1r[:, c] - first
            up_vc = jnp.where(is_target_vc, rows.up_1r[:, c], 0.0)
            dz_vr[:, c] = (q_vc * rows.down_1r[:, c] - up_vc).astype(dz_vr.dtype)

    def again(c: Any) -> jax.Array:
        z_vc, slope_vc = _logits(table_vD[...], rows.x_rD[c, :], num_valid, shape)
        return _times(jnp.exp(z_vc - rows.lse_1r[:, c]), slope_vc)

    def kept(c: Any) -> jax.Array:
        factor_1c = jnp.exp(rows.peak_1r[:, c] - rows.lse_1r[:, c])
        return rows.kept_vr[:, c].astype(jnp.float32) * factor_1c

    is_kept = pl.program_id(1) >= shape.tiles - shape.kept_tiles
    pl.when(is_kept)(lambda: write(kept))
    if shape.kept_tiles < shape.tiles:
        pl.when(jnp.logical_not(is_kept))(lambda: write(again))


def _gradients(
    out: Gradients, rows: Prev, table_vD: Ref, dz_vr: Ref, is_first: jax.Array, columns: int
) -> None:
    """Adds one tile's products to both gradients, some columns of D at a time.

    The first chunk finds nothing in dtable, not even zeros.
    """
    for start in range(0, table_vD.shape[1], columns):
        d = pl.ds(start, min(columns, table_vD.shape[1] - start))
        sum_vd = jnp.where(is_first, 0.0, rows.dtable_vD[:, d])
        out.dtable_vD[:, d] = sum_vd + _dot(dz_vr[...], rows.x_rD[:, d], (1, 0))
        out.dx_rD[:, d] += _dot(dz_vr[...], table_vD[:, d].astype(dz_vr.dtype), (0, 0))


def kernel(
    scalars_3: Ref,
    table_vD: Ref,
    prev: Prev | None,
    following: Next | None,
    gradients: Gradients | None,
    statistics: Statistics | None,
    dz_vr: Ref | None,
    *,
    shape: Shape,
) -> None:
    """One tile of one part of the vocabulary, on the grid (parts, tiles).

    scalars_3: the length of the vocabulary, the number of the previous and of the next chunk
    """
    tile = pl.program_id(1)
    first = (pl.program_id(0) * shape.tiles + tile) * table_vD.shape[0]
    num_valid = scalars_3[0] - first

    @pl.when(tile == 0)
    def _() -> None:
        if gradients is not None:
            gradients.dx_rD[...] = jnp.zeros_like(gradients.dx_rD)
        if statistics is not None:
            statistics.peak_1r[...] = jnp.full_like(statistics.peak_1r, LOWEST)
            statistics.hit_1r[...] = jnp.full_like(statistics.hit_1r, LOWEST)
            statistics.total_1r[...] = jnp.zeros_like(statistics.total_1r)
            statistics.best_1r[...] = jnp.zeros_like(statistics.best_1r)

    if shape.rows_in_table % table_vD.shape[0]:  # a product of 0 and what lies behind may be NaN

        @pl.when(first + table_vD.shape[0] > shape.rows_in_table)
        def _() -> None:
            inside_vD = _index(table_vD) < shape.rows_in_table - first
            table_vD[...] = jnp.where(inside_vD, table_vD[...], 0)

    if prev is not None and gradients is not None and dz_vr is not None:
        _logit_gradients(dz_vr, prev, table_vD, first, num_valid, shape)
        is_first = scalars_3[1] == 0
        _gradients(gradients, prev, table_vD, dz_vr, is_first, shape.columns)
    if following is not None and statistics is not None:
        _statistics(statistics, following, table_vD, first, num_valid, shape)
