# SPDX-License-Identifier: Apache-2.0
"""Grouped matmul on TPU, and its gradients, over the visits of schedule.py.

    y:  grid (part of the rows, tile of F, visit)    x tile (r, D) @ w[group] tile (D, f)
    dx: the same with w[group] transposed
    dw: grid (tile of D, tile of F, visit)           x tile (r, d)^T @ dy tile (r, f), summed in f32

The contraction is never split, so a group's matrix stays in vector memory while its rows pass: the
matrices are read once, x once for each tile of F.  A tile that one group fills is one product.  At
the border of groups only pieces that hold rows of the group are computed, from its first row on.

Legend: R rows, tiles of r  E groups  D contracted width  F other width  M visits
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul.schedule import ALIGN, Visits, num_pieces, shared, visits
from pallas_kernels.tuning.grouped_matmul import Blocks

Ref = Any


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=exact, preferred_element_type=jnp.float32
    )


def _pieces(start: jax.Array, stop: jax.Array, tile: int, piece: int, body: Any) -> None:
    """body(rows, is_in, is_first) for pieces of a tile that hold its rows from start to stop.

    Each row is in once: the last piece is moved back into the tile, over rows that are done.
    """
    align = min(ALIGN, piece)
    begin = start // align * align

    def one(i: jax.Array, _: None) -> None:
        low = begin + i * piece
        first = pl.multiple_of(jnp.minimum(low, tile - piece), align)
        row_p1 = first + jax.lax.broadcasted_iota(jnp.int32, (piece, 1), 0)
        is_in_p1 = (row_p1 >= jnp.maximum(start, low)) & (row_p1 < stop)
        body(pl.ds(first, piece), is_in_p1, i == 0)

    jax.lax.fori_loop(0, num_pieces(start, stop, piece), one, None)


def _product_kernel(
    group_M: Ref,
    tile_M: Ref,
    start_M: Ref,
    stop_M: Ref,
    x_rD: Ref,
    w_Df: Ref,
    y_rf: Ref,
    *,
    piece: int,
    num_groups: int,
    is_flipped: bool,
) -> None:
    at = pl.program_id(0), pl.program_id(2)
    plan = Visits(group_M, tile_M, start_M, stop_M)
    r = x_rD.shape[0]
    first = plan.tile_M[at] * r
    start = jnp.maximum(plan.start_M[at] - first, 0)
    stop = jnp.minimum(plan.stop_M[at] - first, r)
    is_group = plan.group_M[at] < num_groups
    is_whole = is_group & (start == 0) & (stop == r)
    product = partial(_dot, contract=(1, 1 if is_flipped else 0))

    @pl.when(is_whole)
    def _() -> None:
        y_rf[...] = product(x_rD[...], w_Df[...]).astype(y_rf.dtype)

    def part(rows: Any, is_in_p1: jax.Array, _: Any) -> None:
        y_pf = product(x_rD[rows, :], w_Df[...])
        y_rf[rows, :] = jnp.where(is_in_p1, y_pf, y_rf[rows, :].astype(jnp.float32)).astype(
            y_rf.dtype
        )

    def nothing(rows: Any, is_in_p1: jax.Array, _: Any) -> None:
        y_rf[rows, :] = jnp.where(is_in_p1, 0.0, y_rf[rows, :].astype(jnp.float32)).astype(
            y_rf.dtype
        )

    pl.when(is_group & ~is_whole)(lambda: _pieces(start, stop, r, piece, part))
    pl.when(~is_group)(lambda: _pieces(start, stop, r, piece, nothing))


def product(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    sizes_E: jax.Array,
    blocks: Blocks,
    *,
    is_flipped: bool = False,
    interpret: Any = False,
) -> jax.Array:
    """y (R, F) in the dtype of x; is_flipped: w is (E, F, D)."""
    R, D = x_RD.shape
    E, F = len(w_EDF), w_EDF.shape[1 if is_flipped else 2]
    r, f = blocks.rows, min(blocks.columns, F)
    tiles = pl.cdiv(R, r)
    parts, piece = min(blocks.num_cores, tiles), min(blocks.piece, r)
    # the rows beyond the last group are one more, whose matrix is zero
    whole_E = jnp.append(sizes_E, R - jnp.sum(sizes_E)).astype(jnp.int32)
    plan = shared(visits(whole_E, R, r, visit_empty=False), r, piece, tiles, parts)

    group = lambda p, m, plan: jnp.minimum(plan.group_M[p, m], E - 1)
    w_block = (None, f, D) if is_flipped else (None, D, f)
    w_index = lambda p, n, m, plan: (
        (group(p, m, plan), n, 0) if is_flipped else (group(p, m, plan), 0, n)
    )
    return pl.pallas_call(
        partial(_product_kernel, piece=piece, num_groups=E, is_flipped=is_flipped),
        name="grouped_matmul",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(parts, pl.cdiv(F, f), plan.tile_M.shape[1]),
            in_specs=[
                pl.BlockSpec((r, D), lambda p, n, m, *plan: (Visits(*plan).tile_M[p, m], 0)),
                pl.BlockSpec(w_block, lambda p, n, m, *plan: w_index(p, n, m, Visits(*plan))),
            ],
            out_specs=pl.BlockSpec((r, f), lambda p, n, m, *plan: (Visits(*plan).tile_M[p, m], n)),
        ),
        out_shape=jax.ShapeDtypeStruct((R, F), x_RD.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=blocks.vmem_bytes,
        ),
        interpret=interpret,
    )(*plan, x_RD, w_EDF)


def _weights_kernel(
    group_M: Ref,
    tile_M: Ref,
    start_M: Ref,
    stop_M: Ref,
    x_rd: Ref,
    dy_rf: Ref,
    dw_df: Ref,
    sum_df: Ref,
    *,
    piece: int,
) -> None:
    m, last = pl.program_id(2), pl.num_programs(2) - 1
    r = x_rd.shape[0]
    first = tile_M[m] * r
    start = jnp.maximum(start_M[m] - first, 0)
    stop = jnp.minimum(stop_M[m] - first, r)
    is_whole = (start == 0) & (stop == r)

    is_new = (m == 0) | (group_M[jnp.maximum(m - 1, 0)] != group_M[m])

    @pl.when(is_new & (start >= stop))
    def _() -> None:
        sum_df[...] = jnp.zeros_like(sum_df)

    @pl.when(is_whole)
    def _() -> None:
        sum_df[...] = jnp.where(is_new, 0.0, sum_df[...]) + _dot(x_rd[...], dy_rf[...], (0, 0))

    def part(rows: Any, is_in_p1: jax.Array, is_first_piece: jax.Array) -> None:
        x_pd = jnp.where(is_in_p1, x_rd[rows, :], 0)
        dy_pf = jnp.where(is_in_p1, dy_rf[rows, :], 0)
        is_first = is_new & is_first_piece
        sum_df[...] = jnp.where(is_first, 0.0, sum_df[...]) + _dot(x_pd, dy_pf, (0, 0))

    pl.when(~is_whole)(lambda: _pieces(start, stop, r, piece, part))

    @pl.when((m == last) | (group_M[jnp.minimum(m + 1, last)] != group_M[m]))
    def _() -> None:
        dw_df[...] = sum_df[...].astype(dw_df.dtype)


def weights_gradient(
    x_RD: jax.Array,
    dy_RF: jax.Array,
    sizes_E: jax.Array,
    dtype: Any,
    blocks: Blocks,
    *,
    interpret: Any = False,
) -> jax.Array:
    """dw (E, D, F): of each group x^T dy, zero for a group without rows."""
    (R, D), F, E = x_RD.shape, dy_RF.shape[1], len(sizes_E)
    r, d, f = blocks.rows, min(blocks.contracted, D), min(blocks.columns, F)
    plan = visits(sizes_E, R, r, visit_empty=True)
    return pl.pallas_call(
        partial(_weights_kernel, piece=min(blocks.piece, r)),
        name="grouped_matmul_dw",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(pl.cdiv(D, d), pl.cdiv(F, f), len(plan.tile_M)),
            in_specs=[
                pl.BlockSpec((r, d), lambda i, n, m, group, tile, *_: (tile[m], i)),
                pl.BlockSpec((r, f), lambda i, n, m, group, tile, *_: (tile[m], n)),
            ],
            out_specs=pl.BlockSpec((None, d, f), lambda i, n, m, group, *_: (group[m], i, n)),
            scratch_shapes=[pltpu.VMEM((d, f), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((E, D, F), dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=blocks.vmem_bytes,
        ),
        interpret=interpret,
    )(*plan, x_RD, dy_RF)
