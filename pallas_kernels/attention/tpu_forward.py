# SPDX-License-Identifier: Apache-2.0
"""The forward kernel of attention on TPU.

One program computes a block of queries of one head.  Keys and values of the head stay in vector
memory while its blocks of queries (and the other heads of its group) pass, and a loop whose bounds
are read at run time visits just the tiles of keys that the mask needs: tiles wholly inside the
mask without any mask arithmetic, the others with it.  Where the diagonal's place is known at
compile time it is a staircase of ever wider tiles.  Heads too long for vector memory come in
chunks, the accumulators staying in scratch memory.

Mathematics (online softmax, arXiv:1805.02867 and arXiv:2205.14135, in base 2): with scores s in
units of log 2, for every tile  m' = max(m, max s),  p = 2^(s - m'),
    l' = 2^(m - m') l + sum p,     acc' = 2^(m - m') acc + p v,
and at the end out = acc / l, lse = ln 2 * (m + log2 l).  A sink is a key of value zero, so it only
changes where m and l start.

Bounded scores: if |s| < BOUNDED the maximum is needless: p = 2^s and all sums of up to 2^20 of
them are normal f32 and bf16 numbers.  The bound is checked at run time, per head.

Numerics: scores, softmax and accumulators in f32, the scale applied in f32 after the product;
probabilities are rounded to v's dtype before their product with v.  f32 inputs are multiplied in
full f32.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  G = N/K  H width of q and k
        V width of v  Q queries of a block  J keys of a tile  L the 128 lanes of a vector register
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.masks import Mask, Start, block_ranges
from pallas_kernels.attention.tpu_forward_kernel import LANES, LOG2_E, Plan, kernel
from pallas_kernels.tuning.attention import ForwardBlocks, forward_blocks


def forward(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSV: jax.Array,
    sinks_N: jax.Array | None,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    segment_ids: tuple[jax.Array, jax.Array] | None,
    q_start: Start,
    k_start: Start,
    logit_bound: jax.Array | float | None,
    chip: str,
    interpret: Any,
    blocks: ForwardBlocks | None = None,
    paths: str = "both",
) -> tuple[jax.Array, jax.Array]:
    """(out_BNTV in q's dtype, lse_BNT in f32); a query that sees nothing gets 0 and -inf."""
    B, N, T, H = q_BNTH.shape
    S, V = v_BKSV.shape[2:]
    is_aligned = isinstance(q_start, int) and isinstance(k_start, int) and q_start == k_start
    is_plain = mask.causal and segment_ids is None and is_aligned and T == S
    itemsize = q_BNTH.dtype.itemsize
    blocks = blocks or forward_blocks(chip, T, S, H, V, itemsize, is_plain, mask.window)
    if paths == "both" and segment_ids is not None and itemsize < 4 and chip in ("v5e", "v5p"):
        paths = "online"  # most tiles are cut: there rounded sums cost more than a running maximum
    Q, J, C = blocks.queries, blocks.keys, blocks.chunk
    plan = Plan(
        mask=mask,
        scale=scale,
        softcap=softcap,
        blocks=blocks,
        num_keys=S,
        num_blocks=pl.cdiv(T, Q),
        num_chunks=pl.cdiv(S, C),
        has_ids=segment_ids is not None,
        has_staircase=is_plain and _has_staircase(blocks, mask.window, S),
        paths=paths,
        precision=jax.lax.Precision.HIGHEST if q_BNTH.dtype == jnp.float32 else None,
    )
    q_ids_BT, k_ids_BS = segment_ids or (None, None)
    ranges = block_ranges(mask, q_ids_BT, k_ids_BS, q_start, k_start, T, S, Q, J)
    sinks = jnp.full(N, -jnp.inf) if sinks_N is None else sinks_N.astype(jnp.float32)
    scalars = (
        jnp.broadcast_to(ranges, (B, plan.num_blocks, 4)).reshape(-1),
        jnp.broadcast_to(jnp.asarray(q_start - k_start, jnp.int32), (B,)),
        jnp.zeros(B * N)
        if paths == "online"
        else _bounds(q_BNTH, k_BKSH, sinks, scale, softcap, logit_bound),
        LOG2_E * sinks,
    )
    pad = plan.num_chunks * C - S  # zeros, for a NaN of v would survive a weight of 0
    if pad:
        k_BKSH, v_BKSV = (jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (k_BKSH, v_BKSV))
    if q_ids_BT is not None and k_ids_BS is not None:
        q_ids_BT = q_ids_BT[:, None, :]
        k_ids_BS = jnp.pad(k_ids_BS, ((0, 0), (0, pad)))[:, None, :]
    return _call(plan, interpret, scalars, q_BNTH, k_BKSH, v_BKSV, q_ids_BT, k_ids_BS)


def _has_staircase(blocks: ForwardBlocks, window: int | None, S: int) -> bool:
    if window is None:
        return blocks.queries % blocks.keys == 0 and blocks.chunk % blocks.queries == 0
    return blocks.chunk >= S and blocks.queries >= window and blocks.chunk % blocks.queries == 0


def _bounds(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    sinks_N: jax.Array,
    scale: float,
    softcap: float | None,
    logit_bound: jax.Array | float | None,
) -> jax.Array:
    """Upper bounds of |score| and |sink| per head in units of log 2: f32 (B * N,)."""
    B, N = q_BNTH.shape[:2]
    K = k_BKSH.shape[1]
    if logit_bound is None:  # |q k| <= |q| |k|
        longest = lambda x: jnp.sqrt(jnp.max(jnp.sum(jnp.square(x.astype(jnp.float32)), -1), -1))
        q_BKG, k_BK1 = longest(q_BNTH).reshape(B, K, N // K), longest(k_BKSH)[:, :, None]
        bound_BN = (abs(scale) * q_BKG * k_BK1).reshape(B, N)
    else:
        bound_BN = jnp.broadcast_to(jnp.asarray(logit_bound, jnp.float32), (B, N))
    if softcap is not None:
        bound_BN = jnp.minimum(bound_BN, softcap)
    sinks_1N = jnp.where(sinks_N == -jnp.inf, 0.0, jnp.abs(sinks_N))[None, :]
    return (LOG2_E * jnp.maximum(bound_BN, sinks_1N)).reshape(-1)


def _chunk(plan: Plan, b: Any, i: Any, c: Any, ranges: Any) -> Any:
    """Chunks that the block of queries does not need are not fetched."""
    if plan.num_chunks == 1:
        return 0
    first, last = (ranges[(b * plan.num_blocks + i) * 4 + x] for x in (0, 3))
    lowest = first // plan.chunk_tiles
    return jnp.clip(c, lowest, jnp.maximum(last - 1, first) // plan.chunk_tiles)


def _call(
    plan: Plan,
    interpret: Any,
    scalars: tuple[jax.Array, ...],
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSV: jax.Array,
    q_ids_B1T: jax.Array | None,
    k_ids_B1S: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    B, N, T, H = q_BNTH.shape
    K, V = v_BKSV.shape[1], v_BKSV.shape[3]
    Q, C = plan.blocks.queries, plan.blocks.chunk
    chunk = functools.partial(_chunk, plan)
    kv_index = lambda b, n, i, c, ranges, *_: (b, n * K // N, chunk(b, i, c, ranges), 0)
    block = lambda b, n, i, *_: (b, n, i, 0)
    in_specs = [
        pl.BlockSpec((None, None, Q, H), block),
        pl.BlockSpec((None, None, C, H), kv_index),
        pl.BlockSpec((None, None, C, V), kv_index),
        pl.BlockSpec((None, 1, Q), lambda b, n, i, *_: (b, 0, i)) if plan.has_ids else None,
        pl.BlockSpec((None, 1, C), lambda b, n, i, c, ranges, *_: (b, 0, chunk(b, i, c, ranges)))
        if plan.has_ids
        else None,
    ]
    lanes = pltpu.VMEM((Q, LANES), jnp.float32)
    out_BNTV, lse_BN1T = pl.pallas_call(
        functools.partial(kernel, plan=plan),
        name="attention_forward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(B, N, plan.num_blocks, plan.num_chunks),
            in_specs=in_specs,
            out_specs=[
                pl.BlockSpec((None, None, Q, V), block),
                pl.BlockSpec((None, None, 1, Q), lambda b, n, i, *_: (b, n, 0, i)),
            ],
            scratch_shapes=[
                pltpu.VMEM((Q, V), jnp.float32),
                lanes,
                lanes,
                pltpu.VMEM((Q, LANES), jnp.int32) if plan.has_ids else None,
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, N, T, V), q_BNTH.dtype),
            jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=60 << 20,
        ),
        interpret=interpret,
    )(*scalars, q_BNTH, k_BKSH, v_BKSV, q_ids_B1T, k_ids_B1S)
    return out_BNTV, lse_BN1T[:, :, 0]
