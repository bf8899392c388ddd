# SPDX-License-Identifier: Apache-2.0
"""The two backward kernels of attention on GPUs: one for dq, one for dk and dv.

With probabilities p = 2^(s - lse), computed again, and delta = sum(out * d_out) - d_lse per query,
    ds = p * (d_out v^T - delta),     dq = ds k,     dk = ds^T q,     dv = p^T d_out,
dq summed over keys in the programs of one kernel, dk and dv over queries and over the heads of a
group in those of the other: every sum has one owner, and the result is the same in every run.

    d_sink = -sum(exp(sink - lse) * delta)

since a sink is a score whose value is zero.

Numerics: all sums in f32, the scale applied in f32; p and ds are rounded to the inputs' dtype for
their products.  f32 inputs are multiplied in full f32.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  G = N/K
        H width of q and k  V width of v  Q queries of a tile  J keys of a tile
        I blocks of queries or of keys
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.attention import gpu_tiles as tiles
from pallas_kernels.attention.gpu_tiles import LOG2_E, Plan


class Inputs(NamedTuple):
    """Of both kernels."""

    distance_B: jax.Array  # of position 0 of q from position 0 of k
    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKV: jax.Array
    d_out_BTNV: jax.Array
    lse_BNT: jax.Array  # in units of log 2; +inf for a query that sees nothing
    delta_BNT: jax.Array
    q_ids_BT: jax.Array | None
    k_ids_BS: jax.Array | None


NAMES = ("distance", "q", "k", "v", "out", "number", "number", "q_ids", "k_ids")  # of specs


def per_query(
    out_BTNV: jax.Array,
    lse_BNT: jax.Array,
    d_out_BTNV: jax.Array,
    d_lse_BNT: jax.Array,
    sinks_N: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(lse and delta as the kernels read them, the gradient of the sinks or None)."""
    f32 = jnp.float32
    sees_any_BNT = lse_BNT > -jnp.inf
    delta_BNT = jnp.sum(out_BTNV.astype(f32) * d_out_BTNV.astype(f32), axis=-1).swapaxes(1, 2)
    delta_BNT = jnp.where(sees_any_BNT, delta_BNT - d_lse_BNT, 0.0)
    d_sinks_N = None
    if sinks_N is not None:
        p_BNT = jnp.exp(sinks_N.astype(f32)[None, :, None] - lse_BNT)
        d_sinks_N = -jnp.sum(jnp.where(sees_any_BNT, p_BNT * delta_BNT, 0.0), axis=(0, 2))
        d_sinks_N = d_sinks_N.astype(sinks_N.dtype)
    return jnp.where(sees_any_BNT, lse_BNT * LOG2_E, jnp.inf), delta_BNT, d_sinks_N


def d_queries(plan: Plan, ranges_BI4: jax.Array, inputs: Inputs, interpret: bool) -> jax.Array:
    """dq_BTNH in q's dtype; ranges as of masks.block_ranges."""
    B, _, N, _ = inputs.q_BTNH.shape
    specs = tiles.specs(plan)
    return pl.pallas_call(
        functools.partial(_d_queries_kernel, plan=plan),
        name="attention_backward_dq",
        grid=(plan.num_q_blocks, N, B),
        in_specs=[specs["ranges"](plan.num_q_blocks), *(specs[name] for name in NAMES)],
        out_specs=specs["q"],
        out_shape=jax.ShapeDtypeStruct(inputs.q_BTNH.shape, inputs.q_BTNH.dtype),
        compiler_params=plgpu.CompilerParams(
            num_warps=plan.blocks.warps, num_stages=plan.blocks.stages
        ),
        interpret=interpret,
    )(ranges_BI4, *inputs)


def d_keys(
    plan: Plan, ranges_BI4: jax.Array, inputs: Inputs, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """(dk_BSKH, dv_BSKV) in the dtypes of k and v; ranges as of masks.block_ranges by key."""
    specs = tiles.specs(plan)
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(
        functools.partial(_d_keys_kernel, plan=plan),
        name="attention_backward_dkv",
        grid=(plan.num_k_blocks, plan.K, inputs.k_BSKH.shape[0]),
        in_specs=[specs["ranges"](plan.num_k_blocks), *(specs[name] for name in NAMES)],
        out_specs=[specs["k"], specs["v"]],
        out_shape=[like(inputs.k_BSKH), like(inputs.v_BSKV)],
        compiler_params=plgpu.CompilerParams(
            num_warps=plan.blocks.warps, num_stages=plan.blocks.stages
        ),
        interpret=interpret,
    )(ranges_BI4, *inputs)


def _d_queries_kernel(
    ranges: Any, distance: Any, q_ref: Any, k_ref: Any, v_ref: Any, d_out_ref: Any, lse_ref: Any,
    delta_ref: Any, q_ids: Any, k_ids: Any, dq_ref: Any, *, plan: Plan,
) -> None:  # fmt: skip
    block, n = pl.program_id(0), pl.program_id(1)
    h = jax.lax.div(n, plan.G)
    if plan.mask.causal:  # the last queries see most: they start first
        block = plan.num_q_blocks - 1 - block
    q = tiles.queries(plan, block)
    q_QH = tiles.load(q_ref, q, n, plan.H)
    d_out_QV = tiles.load(d_out_ref, q, n, plan.V)
    lse_Q1 = tiles.load_numbers(lse_ref, q, n)[:, None]
    delta_Q1 = tiles.load_numbers(delta_ref, q, n)[:, None]

    def tile(is_masked: bool, j: Any, dq_QH: jax.Array) -> jax.Array:
        k = tiles.keys(plan, j)
        k_JH = tiles.load(k_ref, k, h, plan.H, is_whole=not is_masked)
        v_JV = tiles.load(v_ref, k, h, plan.V, is_whole=not is_masked)
        s_QJ, slope_QJ = tiles.scores(plan, tiles.dot(plan, q_QH, k_JH.T))
        if is_masked:
            seen_QJ = tiles.visible(plan, q, k, distance[0], q_ids, k_ids, swapped=False)
            s_QJ = tiles.hide(s_QJ, seen_QJ)
        p_QJ = jnp.exp2(s_QJ - lse_Q1)
        ds_QJ = p_QJ * (tiles.dot(plan, d_out_QV, v_JV.T) - delta_Q1)
        if slope_QJ is not None:
            ds_QJ *= slope_QJ
        return dq_QH + tiles.dot(plan, ds_QJ.astype(k_JH.dtype), k_JH)

    dq_QH = tiles.visit(plan, ranges, block, tile, jnp.zeros(q_QH.shape, jnp.float32))
    tiles.store(dq_ref, q, n, plan.H, dq_QH * plan.scale)


def _d_keys_kernel(
    ranges: Any, distance: Any, q_ref: Any, k_ref: Any, v_ref: Any, d_out_ref: Any, lse_ref: Any,
    delta_ref: Any, q_ids: Any, k_ids: Any, dk_ref: Any, dv_ref: Any, *, plan: Plan,
) -> None:  # fmt: skip
    """Scores are transposed, so that they and their gradients are left factors of the products."""
    block, h = pl.program_id(0), pl.program_id(1)
    k = tiles.keys(plan, block)
    k_JH = tiles.load(k_ref, k, h, plan.H)
    v_JV = tiles.load(v_ref, k, h, plan.V)

    def tile(head: Any, is_masked: bool, i: Any, state: Any) -> Any:
        dk_JH, dv_JV = state
        q = tiles.queries(plan, i)
        q_QH = tiles.load(q_ref, q, head, plan.H, is_whole=not is_masked)
        d_out_QV = tiles.load(d_out_ref, q, head, plan.V, is_whole=not is_masked)
        lse_1Q = tiles.load_numbers(lse_ref, q, head)[None, :]
        delta_1Q = tiles.load_numbers(delta_ref, q, head)[None, :]
        s_JQ, slope_JQ = tiles.scores(plan, tiles.dot(plan, k_JH, q_QH.T))
        if is_masked:
            seen_JQ = tiles.visible(plan, q, k, distance[0], q_ids, k_ids, swapped=True)
            s_JQ = tiles.hide(s_JQ, seen_JQ)
        p_JQ = jnp.exp2(s_JQ - lse_1Q)  # beyond the last query 1 at most, where q and d_out are 0
        dv_JV += tiles.dot(plan, p_JQ.astype(d_out_QV.dtype), d_out_QV)
        ds_JQ = p_JQ * (tiles.dot(plan, v_JV, d_out_QV.T) - delta_1Q)
        if slope_JQ is not None:
            ds_JQ *= slope_JQ
        dk_JH += tiles.dot(plan, ds_JQ.astype(q_QH.dtype), q_QH)
        return dk_JH, dv_JV

    def of_head(g: Any, state: Any) -> Any:
        of_tile = functools.partial(tile, h * plan.G + g)
        return tiles.visit(plan, ranges, block, of_tile, state)

    state = jnp.zeros(k_JH.shape, jnp.float32), jnp.zeros(v_JV.shape, jnp.float32)
    dk_JH, dv_JV = (
        of_head(0, state) if plan.G == 1 else jax.lax.fori_loop(0, plan.G, of_head, state)
    )
    tiles.store(dk_ref, k, h, plan.H, dk_JH * plan.scale)
    tiles.store(dv_ref, k, h, plan.V, dv_JV)
