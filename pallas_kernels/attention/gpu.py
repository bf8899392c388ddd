# SPDX-License-Identifier: Apache-2.0
"""Attention on NVIDIA GPUs (Pallas Triton): the kernels tied together for jax's gradients.

    out = softmax(scores + mask) v          lse = log(sum exp(scores))      (sinks included)
    d scores = p * (d out v^T - delta)      delta = sum(out * d out) - d lse

What is kept for the backward pass is q, k, v, out and lse; the probabilities are computed again.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H width of q and k
        V width of v
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention import gpu_backward, gpu_forward
from pallas_kernels.attention.gpu_tiles import Plan
from pallas_kernels.attention.masks import Mask, Start, block_ranges
from pallas_kernels.attention.once import once
from pallas_kernels.tuning.attention_gpu import AttentionBlocks, Blocks, attention_blocks


class Options(NamedTuple):
    """What the kernels are compiled for; hashable."""

    mask: Mask
    scale: float
    softcap: float | None
    chip: str  # as in pallas_kernels/tuning/chips.py
    interpret: bool
    blocks: AttentionBlocks | None = None  # None: the table's


class Inputs(NamedTuple):
    """What is not differentiated."""

    distance_B: jax.Array  # of position 0 of q from position 0 of k; (1,) where all rows agree
    q_ids_BT: jax.Array | None
    k_ids_BS: jax.Array | None


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKV: jax.Array,
    sinks_N: jax.Array | None,
    segment_ids: tuple[jax.Array, jax.Array] | None,
    q_start: Start,
    k_start: Start,
    logit_bound: jax.Array | float | None,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """(out (B, T, N, V) in q's dtype, lse (B, N, T) in f32 and nats); logit_bound is not used."""
    del logit_bound
    inputs = _inputs(segment_ids, q_start, k_start, len(q_BTNH))
    return _attention(options, q_BTNH, k_BSKH, v_BSKV, sinks_N, inputs)


def gradients(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKV: jax.Array,
    out_BTNV: jax.Array,
    lse_BNT: jax.Array,
    d_out_BTNV: jax.Array,
    segment_ids: tuple[jax.Array, jax.Array] | None,
    q_start: Start,
    k_start: Start,
    options: Options,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv) by a part of the keys that made out and lse: see parts.py."""
    inputs = _inputs(segment_ids, q_start, k_start, len(q_BTNH))
    residuals = q_BTNH, k_BSKH, v_BSKV, None, inputs, out_BTNV, lse_BNT
    return _attention_bwd(options, residuals, (d_out_BTNV, jnp.zeros_like(lse_BNT)))[:3]


def _inputs(
    segment_ids: tuple[jax.Array, jax.Array] | None, q_start: Start, k_start: Start, B: int
) -> Inputs:
    distance_B = jnp.reshape(jnp.asarray(q_start - k_start, jnp.int32), -1)
    if segment_ids is not None:
        distance_B = jnp.broadcast_to(distance_B, (B,))
    return Inputs(distance_B, *(segment_ids or (None, None)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, q_BTNH, k_BSKH, v_BSKV, sinks_N, inputs):  # type: ignore[no-untyped-def]
    plan, ranges = _plan(options, "forward", q_BTNH, k_BSKH, v_BSKV, inputs)
    arrays = q_BTNH, k_BSKH, v_BSKV, inputs.q_ids_BT, inputs.k_ids_BS, sinks_N
    return tuple(gpu_forward.forward(plan, ranges, inputs.distance_B, *arrays, options.interpret))


def _attention_fwd(options, q_BTNH, k_BSKH, v_BSKV, sinks_N, inputs):  # type: ignore[no-untyped-def]
    out_BTNV, lse_BNT = _attention(options, q_BTNH, k_BSKH, v_BSKV, sinks_N, inputs)
    return (out_BTNV, lse_BNT), (q_BTNH, k_BSKH, v_BSKV, sinks_N, inputs, out_BTNV, lse_BNT)


@once
def _attention_bwd(options, residuals, cotangents):  # type: ignore[no-untyped-def]
    q_BTNH, k_BSKH, v_BSKV, sinks_N, inputs, out_BTNV, lse_BNT = residuals
    d_out_BTNV, d_lse_BNT = cotangents
    lse_BNT, delta_BNT, d_sinks_N = gpu_backward.per_query(
        out_BTNV, lse_BNT, d_out_BTNV, d_lse_BNT, sinks_N
    )
    arrays = gpu_backward.Inputs(
        inputs.distance_B, q_BTNH, k_BSKH, v_BSKV, d_out_BTNV, lse_BNT, delta_BNT, *inputs[1:]
    )
    plan_of = functools.partial(_plan, options)
    plan, ranges = plan_of("d_queries", q_BTNH, k_BSKH, v_BSKV, inputs)
    dq_BTNH = gpu_backward.d_queries(plan, ranges, arrays, options.interpret)
    plan, ranges = plan_of("d_keys", q_BTNH, k_BSKH, v_BSKV, inputs)
    dk_BSKH, dv_BSKV = gpu_backward.d_keys(plan, ranges, arrays, options.interpret)
    return dq_BTNH, dk_BSKH, dv_BSKV, d_sinks_N, None


def _plan(
    options: Options,
    kernel: str,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKV: jax.Array,
    inputs: Inputs,
) -> tuple[Plan, jax.Array]:
    """What one of the kernels (a field of AttentionBlocks) is compiled for, and its ranges."""
    (_, T, N, H), (_, S, K, V) = q_BTNH.shape, v_BSKV.shape
    dtype = q_BTNH.dtype
    table = options.blocks or attention_blocks(options.chip, T, S, H, V, dtype.itemsize)
    blocks: Blocks = getattr(table, kernel)
    distance_B, q_ids_BT, k_ids_BS = inputs
    ranges = block_ranges(
        *(options.mask, q_ids_BT, k_ids_BS, distance_B, 0, T, S, blocks.queries, blocks.keys),
        by_key=kernel == "d_keys",
    )
    plan = Plan(
        mask=options.mask,
        scale=options.scale,
        softcap=options.softcap,
        blocks=blocks,
        **dict(T=T, S=S, K=K, G=N // K, H=H, V=V),
        has_ids=q_ids_BT is not None,
        is_per_row=ranges.shape[0] > 1,
        precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
    )
    return plan, ranges


_attention.defvjp(_attention_fwd, _attention_bwd)
