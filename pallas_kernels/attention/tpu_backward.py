# SPDX-License-Identifier: Apache-2.0
"""The backward pass of attention on TPU: padding, chunks and the call of the kernel.

    delta = sum(out * d_out) - d_lse         d_sink = -sum(exp(sink - lse) * delta)

delta, one number per query, carries both cotangents: that of the output (the softmax takes the
mean of dp away) and that of lse, whose derivative by a score is its probability.  A sink is a
score whose value is zero, so its dp is 0.

Numerics: delta and the gradient of sinks in f32; the kernel's are in tpu_backward_kernel.py.
Legend: B batch  T query positions  S key positions  N query heads  K kv heads  G = N/K
        H width of q and k  V width of v  J blocks of keys
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.masks import Mask, Start, block_ranges
from pallas_kernels.attention.tpu_backward_blocks import (
    Blocks,
    default_blocks,
    fit,
    most_keys,
    round_up,
)
from pallas_kernels.attention.tpu_backward_kernel import LOG2_E, Plan, kernel


class Queries(NamedTuple):
    """What the kernel reads per query."""

    q_BNTH: jax.Array
    d_out_BNTV: jax.Array
    lse_BNT: jax.Array  # of base 2; +inf where the query sees nothing
    delta_BNT: jax.Array


def backward(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSV: jax.Array,
    out_BNTV: jax.Array,
    lse_BNT: jax.Array,
    d_out_BNTV: jax.Array,
    d_lse_BNT: jax.Array | None,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    sinks_N: jax.Array | None = None,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
    q_start: Start = 0,
    k_start: Start = 0,
    chip: str = "",
    blocks: Blocks | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Gradients of sum(out * d_out) + sum(lse * d_lse) by q, k, v and the sinks.

    out and lse (f32, nats) are the forward pass's, -inf for a query that sees nothing: it gives
    and gets zeros.  d_lse None stands for zeros.  segment_ids are those of queries (B, T) and of
    keys (B, S); the starts are scalars or (B,), Python ints where known at compile time.
    Returns dq, dk, dv in the dtypes of q, k, v, and d_sinks (N,) in that of the sinks or None.
    """
    queries, d_sinks_N = _per_query(q_BNTH, out_BNTV, lse_BNT, d_out_BNTV, d_lse_BNT, sinks_N)
    S = k_BKSH.shape[2]
    most = (blocks and blocks.chunk_kv) or most_keys(q_BNTH.shape[3], v_BKSV.shape[3])
    gradients = functools.partial(
        _by_keys,
        queries,
        chip=chip,
        blocks=blocks,
        interpret=interpret,
        dq_dtype=q_BNTH.dtype if most >= S else jnp.dtype(jnp.float32),
        mask=mask,
        scale=scale,
        softcap=softcap,
    )
    parts = []
    for first in range(0, S, most):
        part = slice(first, first + most)
        ids = segment_ids and (segment_ids[0], segment_ids[1][:, part])
        start = q_start - k_start - first
        parts.append(gradients(k_BKSH[:, :, part], v_BKSV[:, :, part], ids, start))
    dqs, dks, dvs = zip(*parts, strict=True)
    dq_BNTH = functools.reduce(jnp.add, dqs).astype(q_BNTH.dtype)
    return dq_BNTH, jnp.concatenate(dks, axis=2), jnp.concatenate(dvs, axis=2), d_sinks_N


def _per_query(
    q_BNTH: jax.Array,
    out_BNTV: jax.Array,
    lse_BNT: jax.Array,
    d_out_BNTV: jax.Array,
    d_lse_BNT: jax.Array | None,
    sinks_N: jax.Array | None,
) -> tuple[Queries, jax.Array | None]:
    """What the kernel reads of the forward pass, and the gradient of the sinks."""
    sees_any_BNT = lse_BNT > -jnp.inf
    delta_BNT = jnp.sum(out_BNTV.astype(jnp.float32) * d_out_BNTV.astype(jnp.float32), axis=-1)
    if d_lse_BNT is not None:
        delta_BNT -= d_lse_BNT
    delta_BNT = jnp.where(sees_any_BNT, delta_BNT, 0.0)
    lse_BNT = jnp.where(sees_any_BNT, lse_BNT, jnp.inf)  # no weight for any key or sink
    d_sinks_N = None
    if sinks_N is not None:
        p_BNT = jnp.exp(sinks_N.astype(jnp.float32)[None, :, None] - lse_BNT)
        d_sinks_N = -jnp.sum(p_BNT * delta_BNT, axis=(0, 2)).astype(sinks_N.dtype)
    queries = Queries(q_BNTH, d_out_BNTV.astype(q_BNTH.dtype), lse_BNT * LOG2_E, delta_BNT)
    return queries, d_sinks_N


def _by_keys(
    queries: Queries,
    k_BKSH: jax.Array,
    v_BKSV: jax.Array,
    segment_ids: tuple[jax.Array, jax.Array] | None,
    start: Start,
    *,
    mask: Mask,
    chip: str,
    blocks: Blocks | None,
    interpret: Any,
    dq_dtype: jnp.dtype,
    **scores: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv) of one call; `start` is the position of query 0 minus that of key 0."""
    B, N, T, H = queries.q_BNTH.shape
    K, S, V = v_BKSV.shape[1:]
    is_aligned = isinstance(start, int) and start == 0 and T == S
    has_diagonal = mask.causal and segment_ids is None and is_aligned
    blocks = blocks or default_blocks(chip, k_BKSH.dtype, has_diagonal, mask.window)
    if mask.window is not None and mask.window < max(blocks.block_kv, blocks.tile_q):
        has_diagonal = False  # its squares would reach out of the window
    sizes = fit(blocks, T, S, H, V, N // K, has_diagonal, k_BKSH.dtype, dq_dtype)
    T_pad, S_pad = round_up(T, sizes.chunk_q), round_up(S, sizes.block_kv)
    q_ids_BT, k_ids_BS = segment_ids or (None, None)
    ranges_BJ4 = block_ranges(
        *(mask, q_ids_BT, k_ids_BS, start, 0, T, S, sizes.tile_q, sizes.block_kv), by_key=True
    )
    plan = Plan(
        **scores,
        mask=mask,
        num_keys=S,
        kv_heads=K,
        groups=N // K,
        chunks=T_pad // sizes.chunk_q,
        **sizes._asdict(),
        has_masked_tiles=not has_diagonal or mask.window is not None or T % sizes.tile_q > 0,
        is_per_row=ranges_BJ4.shape[0] > 1,
    )
    by_head = lambda x, size, fill=0: _pad(x, 2, size, fill).reshape(-1, size, *x.shape[3:])
    row_by_head = lambda x, fill: by_head(x, T_pad, fill)[:, None]
    ids_row = lambda ids, size: None if ids is None else _pad(ids, 1, size)[:, None]
    dq, dk, dv = _call(
        ranges_BJ4.reshape(-1),
        jnp.broadcast_to(jnp.asarray(start, jnp.int32), ranges_BJ4.shape[:1]),
        by_head(queries.q_BNTH, T_pad),
        by_head(queries.d_out_BNTV, T_pad),
        row_by_head(queries.lse_BNT, jnp.inf),
        row_by_head(queries.delta_BNT, 0),
        ids_row(q_ids_BT, T_pad),
        by_head(k_BKSH, S_pad),
        by_head(v_BKSV, S_pad),
        ids_row(k_ids_BS, S_pad),
        plan=plan,
        dq_dtype=dq_dtype,
        interpret=interpret,
    )
    by_row = lambda x, heads, size: x.reshape(B, heads, -1, x.shape[-1])[:, :, :size]
    return by_row(dq, N, T), by_row(dk, K, S), by_row(dv, K, S)


def _call(*arrays: Any, plan: Plan, dq_dtype: jnp.dtype, interpret: Any) -> Any:
    """The kernel on (heads, positions, width); dq, dk and dv of the same form."""
    _, _, q, _, _, _, q_ids, k, v, _ = arrays
    H, V = k.shape[2], v.shape[2]
    kept_keys = plan.block_kv if plan.is_one_sweep else k.shape[1]
    in_specs, out_specs = _specs(plan, H, V, q_ids is not None)
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        name="attention_backward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(k.shape[0], plan.groups, plan.chunks, k.shape[1] // plan.block_kv),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[
                pltpu.VMEM((plan.chunk_q, H), jnp.float32),
                pltpu.VMEM((kept_keys, H), jnp.float32),
                pltpu.VMEM((kept_keys, V), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, dq_dtype),
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            jax.ShapeDtypeStruct(v.shape, v.dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
            vmem_limit_bytes=plan.vmem_bytes,
        ),
        interpret=interpret,
    )(*arrays)


def _specs(plan: Plan, H: int, V: int, has_ids: bool) -> tuple[list[Any], list[Any]]:
    """Of inputs and outputs, on the grid (kv head h, query head g of it, chunk c, block j)."""
    K, G, C = plan.kv_heads, plan.groups, plan.chunks
    per_chunk = plan.chunk_q // plan.block_kv  # blocks

    def needed(c, j):
        """Keys behind all queries of a chunk are not fetched."""
        return jnp.minimum(j, (c + 1) * per_chunk - 1) if plan.block_diag else j

    def by_diagonal(h, g, c, j, *_):
        """dq of the block's own positions, which only the staircase of the chunk writes."""
        return h * G + g, jnp.maximum(needed(c, j), c * per_chunk), 0

    def in_last_sweep(h, g, c, j, *_):
        """dk and dv are written when all is summed; the output stays at block 0 until then."""
        return h, jnp.where((g == G - 1) & (c == C - 1), j, 0), 0

    queries = lambda width: pl.BlockSpec(
        (1, plan.chunk_q, width), lambda h, g, c, j, *_: (h * G + g, c, 0)
    )
    query_row = pl.BlockSpec((1, 1, plan.chunk_q), lambda h, g, c, j, *_: (h * G + g, 0, c))
    q_ids = pl.BlockSpec((1, 1, plan.chunk_q), lambda h, g, c, j, *_: (h // K, 0, c))
    keys = lambda width: pl.BlockSpec(
        (1, plan.block_kv, width), lambda h, g, c, j, *_: (h, needed(c, j), 0)
    )
    k_ids = pl.BlockSpec((1, 1, plan.block_kv), lambda h, g, c, j, *_: (h // K, 0, j))
    in_specs = [
        *(queries(H), queries(V), query_row, query_row, q_ids if has_ids else None),
        *(keys(H), keys(V), k_ids if has_ids else None),
    ]
    dq = pl.BlockSpec((1, plan.block_kv, H), by_diagonal) if plan.block_diag else queries(H)
    dk, dv = (pl.BlockSpec((1, plan.block_kv, width), in_last_sweep) for width in (H, V))
    return in_specs, [dq, dk, dv]


def _pad(x: jax.Array, axis: int, size: int, fill: Any = 0) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, constant_values=fill) if size > x.shape[axis] else x
