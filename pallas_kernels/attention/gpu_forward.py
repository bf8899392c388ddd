# SPDX-License-Identifier: Apache-2.0
"""The forward kernel of attention on GPUs.

One program computes a block of queries of one head, in a loop over the tiles of keys that it needs,
by the online softmax (arXiv:1805.02867, arXiv:2205.14135) in base 2.  For every tile
    m' = max(m, max s),  p = 2^(s - m'),  l' = 2^(m - m') l + sum p,  acc' = 2^(m - m') acc + p v,
and at the end out = acc / l, lse = ln 2 * (m + log2 l).  A sink is a key of value zero, so it only
changes where m and l start.

Numerics: scores, softmax and sums in f32, the scale applied in f32 after the product; p is rounded
to v's dtype before its product with v.  f32 inputs are multiplied in full f32.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H width of q and k
        V width of v  Q queries of a tile  J keys of a tile  I blocks of queries
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.attention import gpu_tiles as tiles
from pallas_kernels.attention.gpu_tiles import LOG2_E, Plan

LOWEST = -1e30  # where running maxima start: finite, so that hidden scores (-inf) give 0, not NaN


def forward(
    plan: Plan,
    ranges_BI4: jax.Array,
    distance_B: jax.Array,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKV: jax.Array,
    q_ids_BT: jax.Array | None,
    k_ids_BS: jax.Array | None,
    sinks_N: jax.Array | None,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """(out_BTNV in q's dtype, lse_BNT in f32); a query that sees nothing gets 0 and -inf.

    ranges as of masks.block_ranges; distance: of position 0 of q from position 0 of k.
    """
    B, T, N, _ = q_BTNH.shape
    specs = tiles.specs(plan)
    names = ("q", "k", "v", "q_ids", "k_ids")
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        name="attention_forward",
        grid=(plan.num_q_blocks, N, B),
        in_specs=[
            specs["ranges"](plan.num_q_blocks),
            specs["distance"],
            *(specs[name] for name in names),
            None if sinks_N is None else specs["sinks"],
        ],
        out_specs=[specs["out"], specs["number"]],
        out_shape=[
            jax.ShapeDtypeStruct((B, T, N, plan.V), q_BTNH.dtype),
            jax.ShapeDtypeStruct((B, N, T), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(
            num_warps=plan.blocks.warps, num_stages=plan.blocks.stages
        ),
        interpret=interpret,
    )(ranges_BI4, distance_B, q_BTNH, k_BSKH, v_BSKV, q_ids_BT, k_ids_BS, sinks_N)


def _kernel(
    ranges: Any, distance: Any, q_ref: Any, k_ref: Any, v_ref: Any, q_ids: Any, k_ids: Any,
    sinks: Any, out_ref: Any, lse_ref: Any, *, plan: Plan,
) -> None:  # fmt: skip
    block, n = pl.program_id(0), pl.program_id(1)
    h = jax.lax.div(n, plan.G)
    if plan.mask.causal:  # the last queries see most: they start first
        block = plan.num_q_blocks - 1 - block
    q = tiles.queries(plan, block)
    q_QH = tiles.load(q_ref, q, n, plan.H)

    def tile(is_masked: bool, j: Any, state: Any) -> Any:
        k = tiles.keys(plan, j)
        k_JH = tiles.load(k_ref, k, h, plan.H, is_whole=not is_masked)
        s_QJ, _ = tiles.scores(plan, tiles.dot(plan, q_QH, k_JH.T))
        if is_masked:
            seen_QJ = tiles.visible(plan, q, k, distance[0], q_ids, k_ids, swapped=False)
            s_QJ = tiles.hide(s_QJ, seen_QJ)
        higher_Q = jnp.maximum(state[2], jnp.max(s_QJ, axis=1))
        p_QJ = jnp.exp2(s_QJ - higher_Q[:, None])
        v_JV = tiles.load(v_ref, k, h, plan.V, is_whole=not is_masked)
        return _fold(plan, state, higher_Q, p_QJ, v_JV)

    lowest_Q = jnp.full(q.size, LOWEST, jnp.float32)
    peak_Q, total_Q = lowest_Q, jnp.zeros(q.size, jnp.float32)
    if sinks is not None:
        sink = sinks[n].astype(jnp.float32) * LOG2_E
        peak_Q = jnp.maximum(lowest_Q, sink)
        total_Q = jnp.exp2(sink - peak_Q)
    acc_QV = jnp.zeros((q.size, out_ref.shape[-1]), jnp.float32)
    acc_QV, total_Q, peak_Q = tiles.visit(plan, ranges, block, tile, (acc_QV, total_Q, peak_Q))

    is_blind_Q = total_Q == 0
    total_Q = jnp.where(is_blind_Q, 1.0, total_Q)
    tiles.store(out_ref, q, n, plan.V, acc_QV / total_Q[:, None])
    lse_Q = (peak_Q + jnp.log2(total_Q)) / LOG2_E
    lse_Q = jnp.where(is_blind_Q, -jnp.inf, lse_Q)
    plgpu.store(lse_ref.at[n, pl.ds(q.first, q.size)], lse_Q, mask=q.is_inside)


def _fold(plan: Plan, state: Any, higher_Q: jax.Array, p_QJ: jax.Array, v_JV: jax.Array) -> Any:
    """One more tile of probabilities, which are relative to the new maximum."""
    acc_QV, total_Q, peak_Q = state
    shrink_Q = jnp.exp2(peak_Q - higher_Q)
    total_Q = total_Q * shrink_Q + jnp.sum(p_QJ, axis=1)
    acc_QV = acc_QV * shrink_Q[:, None] + tiles.dot(plan, p_QJ.astype(v_JV.dtype), v_JV)
    return acc_QV, total_Q, higher_Q
