# SPDX-License-Identifier: Apache-2.0
"""The backward kernel of attention on TPU: dq, dk and dv of one head from one set of scores.

    x = scale * k q^T         s = cap * tanh(x / cap)         p = exp(s - lse)
    dp = v d_out^T            dx = p * (dp - delta) * (1 - (s / cap)^2)
    dv = p d_out              dk = scale * dx q               dq = scale * dx^T k

All tiles are (keys, queries), the transpose of the forward pass: lse and delta are then rows that
broadcast along sublanes, and p and dx enter the products for dv and dk as they are.

A grid step (kv head, query head of it, chunk of queries, block of keys) holds the chunk's queries
in VMEM and loops over the tiles of them that its keys need: a loop without mask arithmetic for
tiles that the mask leaves whole, one with it for the rest.  Where positions are known at compile
time, the square on the diagonal is a staircase of unrolled tiles instead.  Sums stay in f32
scratch: dq of the chunk over the blocks of keys, dk and dv over the chunks and query heads.

The staircase comes after the loops, and its products for dk and dv run over all of its steps at
once, so that it can finish what it adds to: no later block of keys sees its queries, and with one
head and one chunk no other step its keys.  Sums begin by a select in the first tile that adds to
them where that tile is known, which costs idle slots, and by a pass of zeros where it is not.

Numerics: products accumulate in f32, the scale is applied in f32, exponentials are of base 2; p
and dx are rounded to the inputs' dtype before the products that consume them.
Source: the recomputation of FlashAttention (arXiv:2205.14135, algorithm 4).
Legend: T queries of a chunk  S keys of a block  H width of q and k  V width of v
        R keys (rows) and C queries (columns) of a tile
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.masks import Mask, tile_mask

LOG2_E = 1.4426950408889634  # exp(x) = 2 ** (x * LOG2_E)
_ROWS_BY_ROWS = (((1,), (1,)), ((), ()))  # a b^T
_ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))  # a b
_COLUMNS_BY_COLUMNS = (((0,), (0,)), ((), ()))  # a^T b


class Plan(NamedTuple):
    """What the kernel is compiled for."""

    mask: Mask
    scale: float
    softcap: float | None
    num_keys: int  # without the padding of the last block
    kv_heads: int  # per row of the batch
    groups: int  # query heads per kv head
    chunks: int  # of queries
    block_kv: int  # keys per grid step
    tile_q: int  # queries per iteration of a loop
    block_diag: int  # width of the steps of the staircase; 0: the diagonal is found at run time
    chunk_q: int  # queries of a chunk
    vmem_bytes: int  # that all of this may take
    has_masked_tiles: bool  # beside the staircase
    is_per_row: bool  # ranges and starts differ along the batch

    @property
    def is_one_sweep(self) -> bool:
        """Whether every block of keys is visited once, so that its dk and dv need no keeping."""
        return self.groups * self.chunks == 1

    @property
    def ends_in_staircase(self) -> bool:
        """Whether the staircase is the last to add to its keys."""
        return self.block_diag > 0 and self.is_one_sweep

    @property
    def is_plain(self) -> bool:
        """Whether the staircase and whole tiles under it are all there is (but for a ragged end)."""
        return self.block_diag > 0 and self.mask.window is None


class Refs(NamedTuple):
    """Arguments of the kernel, in order."""

    ranges: Any  # SMEM: (first, full_first, full_last, last) of every block of keys, flat
    starts: Any  # SMEM: position of query 0 minus that of key 0
    q: Any  # (1, T, H)
    d_out: Any  # (1, T, V)
    lse: Any  # (1, 1, T), base 2; +inf where p has to be 0
    delta: Any  # (1, 1, T)
    q_ids: Any  # (1, 1, T) or None
    k: Any  # (1, S, H)
    v: Any  # (1, S, V)
    k_ids: Any  # (1, 1, S) or None
    dq: Any  # (1, T, H), of the block on the diagonal only where there is a staircase
    dk: Any  # (1, S, H)
    dv: Any  # (1, S, V)
    dq_sum: Any  # f32 scratch of the chunk
    dk_sum: Any  # f32 scratch of all keys, or of the block if it is visited once
    dv_sum: Any


class Step(NamedTuple):
    """Where a grid step stands."""

    row: Any  # of the batch, for ranges and starts; 0 if all rows share them
    chunk: Any
    block: Any
    keys: Any  # of the block in dk_sum and dv_sum: where they begin


def kernel(*args: Any, plan: Plan) -> None:
    refs = Refs(*args)
    head, group, chunk, block = (pl.program_id(axis) for axis in range(4))
    keys = 0 if plan.is_one_sweep else pl.multiple_of(block * plan.block_kv, plan.block_kv)
    step = Step(head // plan.kv_heads if plan.is_per_row else 0, chunk, block, keys)
    all_keys = pl.ds(keys, plan.block_kv)

    if not plan.is_plain:

        @pl.when(block == 0)
        def begin_dq():
            _clear(refs.dq_sum, slice(None))

    if not plan.ends_in_staircase:

        @pl.when((group == 0) & (chunk == 0))
        def begin_dk_dv():
            _clear(refs.dk_sum, all_keys)
            _clear(refs.dv_sum, all_keys)

    _visit(refs, plan, step)

    if not plan.ends_in_staircase:

        @pl.when((group == plan.groups - 1) & (chunk == plan.chunks - 1))
        def end_dk_dv():
            refs.dk[0] = (refs.dk_sum[all_keys, :] * plan.scale).astype(refs.dk.dtype)
            refs.dv[0] = refs.dv_sum[all_keys, :].astype(refs.dv.dtype)

    if not plan.block_diag:

        @pl.when(block == pl.num_programs(3) - 1)
        def end_dq():
            refs.dq[0] = (refs.dq_sum[...] * plan.scale).astype(refs.dq.dtype)


def _clear(ref: Any, rows: Any) -> None:
    ref[rows, :] = jnp.zeros_like(ref[rows, :])


def _sum(ref: Any, rows: Any, is_first: Any) -> jax.Array:
    """What to add to: the rows of a scratch, or zeros if nothing has been added yet."""
    so_far = ref[rows, :]
    return so_far if is_first is False else jnp.where(is_first, 0.0, so_far)


def _visit(refs: Refs, plan: Plan, step: Step) -> None:
    """Adds what this block of keys and this chunk of queries give to dq, dk and dv."""
    tiles = plan.chunk_q // plan.tile_q
    at = (step.row * pl.num_programs(3) + step.block) * 4
    local = lambda tile, low: jnp.clip(tile - step.chunk * tiles, low, tiles)
    tiles_per_block = plan.block_kv // plan.tile_q
    low = local((step.block + 1) * tiles_per_block, 0) if plan.block_diag else 0
    first, full_first, full_last, last = (local(refs.ranges[at + i], low) for i in range(4))

    def add(tile: Any, is_masked: bool) -> None:
        columns = pl.ds(pl.multiple_of(tile * plan.tile_q, plan.tile_q), plan.tile_q)
        visible = _visible(refs, plan, step, columns) if is_masked else None
        is_first_key = plan.is_plain and step.block == 0
        is_first_query = plan.ends_in_staircase and tile == first
        _add_tile(refs, plan, step, columns, visible, is_first_key, is_first_query)

    def masked(i: Any, _: None) -> None:
        add(jnp.where(first + i < full_first, first + i, full_last - full_first + first + i), True)

    lax.fori_loop(full_first, full_last, lambda tile, _: add(tile, False), None)
    if plan.has_masked_tiles:
        lax.fori_loop(0, full_first - first + last - full_last, masked, None)
    if plan.block_diag:
        diagonal = step.block * plan.block_kv - step.chunk * plan.chunk_q

        @pl.when((diagonal >= 0) & (diagonal < plan.chunk_q))
        def _():
            _staircase(
                refs, plan, step, pl.multiple_of(diagonal, plan.block_kv), is_alone=first == last
            )


def _visible(refs: Refs, plan: Plan, step: Step, columns: Any) -> jax.Array:
    """Which keys of the block are seen by the queries of a tile: (R, C)."""
    key_R1 = step.block * plan.block_kv + _iota(plan.block_kv, 0)
    query_1C = step.chunk * plan.chunk_q + columns.start + _iota(plan.tile_q, 1)
    q_ids_1C = k_ids_R1 = None
    if refs.q_ids is not None:
        q_ids_1C = refs.q_ids[0, :, columns]
        k_ids_R1 = jnp.swapaxes(refs.k_ids[0], 0, 1)
    visible_RC = tile_mask(plan.mask, refs.starts[step.row] + query_1C, key_R1, q_ids_1C, k_ids_R1)
    # no key behind the last one; queries behind the last one have p = 0 by their lse
    exists_R1 = key_R1 < plan.num_keys
    if visible_RC is None:
        return jnp.broadcast_to(exists_R1, (plan.block_kv, plan.tile_q))
    return visible_RC & exists_R1 if plan.num_keys % plan.block_kv else visible_RC


def _iota(size: int, axis: int) -> jax.Array:
    shape = (size, 1) if axis == 0 else (1, size)
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def _add_tile(
    refs: Refs,
    plan: Plan,
    step: Step,
    columns: Any,
    visible: jax.Array | None,
    is_first_key: Any,
    is_first_query: Any,
) -> None:
    """One tile of all keys of the block."""
    keys = pl.ds(step.keys, plan.block_kv)
    p_RC, dx_RC = _scores(refs, plan, slice(0, plan.block_kv), columns, visible)
    refs.dv_sum[keys, :] = _sum(refs.dv_sum, keys, is_first_query) + _dot(
        p_RC, refs.d_out[0, columns], _ROWS_BY_COLUMNS
    )
    refs.dk_sum[keys, :] = _sum(refs.dk_sum, keys, is_first_query) + _dot(
        dx_RC, refs.q[0, columns], _ROWS_BY_COLUMNS
    )
    refs.dq_sum[columns, :] = _sum(refs.dq_sum, columns, is_first_key) + _dot(
        dx_RC, refs.k[0], _COLUMNS_BY_COLUMNS
    )


def _staircase(refs: Refs, plan: Plan, step: Step, diagonal: Any, is_alone: Any) -> None:
    """The square of the block's keys and the queries at the same positions, in steps.

    A step is as wide as block_diag and ends with the keys at its queries' positions.  `is_alone`
    says that no other tile has added to the dk and dv of these keys.
    """
    width = plan.block_diag
    begins = range(0, plan.block_kv, width)
    visible = tile_mask(plan.mask, _iota(width, 1), _iota(width, 0))
    steps = [
        _scores(refs, plan, slice(0, begin + width), pl.ds(diagonal + begin, width), visible)
        for begin in begins
    ]
    for i, begin in enumerate(begins):
        rows, columns = slice(begin, begin + width), pl.ds(diagonal + begin, plan.block_kv - begin)
        p_RC, dx_RC = (
            jnp.concatenate([x[rows] for x in xs[i:]], axis=1) for xs in zip(*steps, strict=True)
        )
        keys = pl.ds(step.keys + begin, width)
        dv_RV = _dot(p_RC, refs.d_out[0, columns], _ROWS_BY_COLUMNS)
        dk_RH = _dot(dx_RC, refs.q[0, columns], _ROWS_BY_COLUMNS)
        if plan.is_one_sweep:
            dv_RV += _sum(refs.dv_sum, keys, is_alone)
            dk_RH += _sum(refs.dk_sum, keys, is_alone)
            refs.dv[0, rows] = dv_RV.astype(refs.dv.dtype)
            refs.dk[0, rows] = (dk_RH * plan.scale).astype(refs.dk.dtype)
        else:
            refs.dv_sum[keys, :] += dv_RV
            refs.dk_sum[keys, :] += dk_RH
    for (_, dx_RC), begin in zip(steps, begins, strict=True):
        rows, columns = slice(0, begin + width), pl.ds(diagonal + begin, width)
        is_first_key = plan.is_plain and step.block == 0
        dq_CH = _dot(dx_RC, refs.k[0, rows], _COLUMNS_BY_COLUMNS)
        dq_CH += _sum(refs.dq_sum, columns, is_first_key)
        refs.dq[0, begin : begin + width] = (dq_CH * plan.scale).astype(refs.dq.dtype)


def _scores(
    refs: Refs, plan: Plan, rows: slice, columns: Any, visible: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """(p, dx) of a tile; `visible` masks its last rows, all of them if it is as tall."""
    scores_RC = _dot(refs.k[0, rows], refs.q[0, columns], _ROWS_BY_ROWS)
    tanh_RC = None
    if plan.softcap is None:
        scores_RC *= plan.scale * LOG2_E
    else:
        tanh_RC = jnp.tanh(scores_RC * (plan.scale / plan.softcap))
        scores_RC = tanh_RC * (plan.softcap * LOG2_E)
    p_RC = jnp.exp2(scores_RC - refs.lse[0, :, columns])
    if visible is not None:
        above = p_RC.shape[0] - visible.shape[0]
        masked_RC = jnp.where(visible, p_RC[above:], 0.0)
        p_RC = jnp.concatenate([p_RC[:above], masked_RC], axis=0) if above else masked_RC
    dp_RC = _dot(refs.v[0, rows], refs.d_out[0, columns], _ROWS_BY_ROWS)
    dx_RC = p_RC * (dp_RC - refs.delta[0, :, columns])
    if tanh_RC is not None:
        dx_RC *= 1 - tanh_RC * tanh_RC
    return p_RC.astype(refs.q.dtype), dx_RC.astype(refs.q.dtype)


def _dot(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    """In f32; of f32 inputs in full precision."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )
