# SPDX-License-Identifier: Apache-2.0
"""Attention on TPU: the forward and the backward kernel tied together for jax's gradients.

    out = softmax(scores + mask) v          lse = log(sum exp(scores))      (sinks included)
    d scores = p * (d out v^T - delta)      delta = sum(out * d out) - d lse

What is kept for the backward pass is q, k, v, out and lse, each by the name KEPT for policies of
rematerialisation; the probabilities are computed again.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H head width
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.attention import tpu_backward, tpu_forward
from pallas_kernels.attention.masks import Mask, Start
from pallas_kernels.attention.once import once

KEPT = "attention_kernel"


class Options(NamedTuple):
    """What a kernel is compiled for; hashable."""

    mask: Mask
    scale: float
    softcap: float | None
    chip: str  # as in pallas_kernels/tuning/attention.py
    interpret: Any  # False, True or pltpu.InterpretParams


class Runtime(NamedTuple):
    """What a kernel reads at run time beside q, k, v and sinks; None where a feature is off."""

    q_ids_BT: jax.Array | None
    k_ids_BS: jax.Array | None
    q_start: jax.Array | None  # position of the first query, scalar or (B,); None: 0
    k_start: jax.Array | None
    logit_bound: jax.Array | float | None  # |scores| stay under it; None: computed from q and k


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    sinks_N: jax.Array | None,
    segment_ids: tuple[jax.Array, jax.Array] | None,
    q_start: Start,
    k_start: Start,
    logit_bound: jax.Array | float | None,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """(out (B, T, N, width of v) in q's dtype, lse (B, N, T) in f32 and nats)."""
    q_ids_BT, k_ids_BS = segment_ids or (None, None)
    runtime = Runtime(q_ids_BT, k_ids_BS, _unless_zero(q_start), _unless_zero(k_start), logit_bound)
    heads_first = lambda x: jnp.swapaxes(x, 1, 2)
    out_BNTH, lse_BNT = _attention(
        options, *map(heads_first, (q_BTNH, k_BSKH, v_BSKH)), sinks_N, runtime
    )
    return heads_first(out_BNTH), lse_BNT


def gradients(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    out_BTNH: jax.Array,
    lse_BNT: jax.Array,
    d_out_BTNH: jax.Array,
    segment_ids: tuple[jax.Array, jax.Array] | None,
    q_start: Start,
    k_start: Start,
    options: Options,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv) by a part of the keys that made out and lse: see parts.py."""
    q_ids_BT, k_ids_BS = segment_ids or (None, None)
    runtime = Runtime(q_ids_BT, k_ids_BS, _unless_zero(q_start), _unless_zero(k_start), None)
    heads_first = lambda x: jnp.swapaxes(x, 1, 2)
    q_BNTH, k_BKSH, v_BKSH, out_BNTH, d_out_BNTH = map(
        heads_first, (q_BTNH, k_BSKH, v_BSKH, out_BTNH, d_out_BTNH)
    )
    residuals = q_BNTH, k_BKSH, v_BKSH, None, runtime, out_BNTH, lse_BNT
    found = _attention_bwd(options, residuals, (d_out_BNTH, None))[:3]
    dq_BTNH, dk_BSKH, dv_BSKH = map(heads_first, found)
    return dq_BTNH, dk_BSKH, dv_BSKH


def _unless_zero(start: Start) -> jax.Array | None:
    """None for a start known to be 0: kernels then place the diagonal at compile time."""
    return None if isinstance(start, int) and start == 0 else jnp.asarray(start, jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, q_BNTH, k_BKSH, v_BKSH, sinks_N, runtime):  # type: ignore[no-untyped-def]
    return tpu_forward.forward(
        q_BNTH,
        k_BKSH,
        v_BKSH,
        sinks_N,
        segment_ids=_segment_ids(runtime),
        q_start=0 if runtime.q_start is None else runtime.q_start,
        k_start=0 if runtime.k_start is None else runtime.k_start,
        logit_bound=runtime.logit_bound,
        **options._asdict(),
    )


def _attention_fwd(options, q_BNTH, k_BKSH, v_BKSH, sinks_N, runtime):  # type: ignore[no-untyped-def]
    keep = functools.partial(checkpoint_name, name=KEPT)
    q_BNTH, k_BKSH, v_BKSH = map(keep, (q_BNTH, k_BKSH, v_BKSH))
    out_BNTH, lse_BNT = map(keep, _attention(options, q_BNTH, k_BKSH, v_BKSH, sinks_N, runtime))
    return (out_BNTH, lse_BNT), (q_BNTH, k_BKSH, v_BKSH, sinks_N, runtime, out_BNTH, lse_BNT)


@once
def _attention_bwd(options, residuals, cotangents):  # type: ignore[no-untyped-def]
    q_BNTH, k_BKSH, v_BKSH, sinks_N, runtime, out_BNTH, lse_BNT = residuals
    d_out_BNTH, d_lse_BNT = cotangents
    # dq, dk, dv in the dtypes of q, k, v; d_sinks (N,) f32 or None where sinks_N is None
    dq_BNTH, dk_BKSH, dv_BKSH, d_sinks_N = tpu_backward.backward(
        q_BNTH,
        k_BKSH,
        v_BKSH,
        out_BNTH,
        lse_BNT,
        d_out_BNTH,
        d_lse_BNT,
        sinks_N=sinks_N,
        segment_ids=_segment_ids(runtime),
        q_start=0 if runtime.q_start is None else runtime.q_start,  # the int 0: known when traced
        k_start=0 if runtime.k_start is None else runtime.k_start,
        **options._asdict(),  # mask, scale, softcap, chip, interpret
    )
    return dq_BNTH, dk_BKSH, dv_BKSH, d_sinks_N, None


def _segment_ids(runtime: Runtime) -> tuple[jax.Array, jax.Array] | None:
    if runtime.q_ids_BT is None or runtime.k_ids_BS is None:
        return None
    return runtime.q_ids_BT, runtime.k_ids_BS


_attention.defvjp(_attention_fwd, _attention_bwd)
