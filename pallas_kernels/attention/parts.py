# SPDX-License-Identifier: Apache-2.0
"""Gradients of attention by a part of its keys, given the result of all parts together.

    p = exp(scores - lse)       delta = sum(out * d out)       d scores = p * (d out v^T - delta)

Since lse and out are those of all keys, the parts' gradients of q add up and those of k and v are
final: what the backward pass of ring attention needs at each of its stops.  See merge.py.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  G = N/K
        H head width  V width of v
"""

import jax
import jax.numpy as jnp

from pallas_kernels.attention.api import Impl, choose, kernels_of, why_not_pallas
from pallas_kernels.attention.check import (
    check_array,
    check_arrays,
    check_dtypes,
    check_options,
    checked_offsets,
    chip_or_running,
)
from pallas_kernels.attention.masks import Mask, Start
from pallas_kernels.attention.reference import attention_mask


def gradients(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    out_BTNH: jax.Array,
    lse_BNT: jax.Array,
    d_out_BTNH: jax.Array,
    *,
    window: int | None = None,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
    softcap: float | None = None,
    q_offset: Start = 0,
    k_offset: Start = 0,
    impl: Impl = "auto",
    chip: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv) of causal attention, in the dtypes of q, k and v; options as in api.attention.

    out and lse are of all keys and of the sinks; the scale is 1/sqrt(H).
    Raises ValueError for arguments that do not fit, or an impl that cannot run here.
    """
    if impl == "xla":
        raise ValueError(
            "attention impl 'xla' has no gradients by parts; allowed: auto, reference, pallas"
        )
    check_arrays(q_BTNH, k_BSKH, v_BSKH, segment_ids, None, None)
    check_options(None, True, window, softcap)
    (B, T, N, _), V = q_BTNH.shape, v_BSKH.shape[3]
    check_array("out_BTNH", out_BTNH, (B, T, N, V), "floating point")
    check_array("lse_BNT", lse_BNT, (B, N, T), "floating point")
    check_array("d_out_BTNH", d_out_BTNH, (B, T, N, V), "floating point")
    q_offset, k_offset = checked_offsets(q_offset, k_offset, B)
    chip = chip_or_running(chip)
    reason = why_not_pallas(chip, q_BTNH, k_BSKH, v_BSKH)
    arrays = q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BNT, d_out_BTNH
    mask, scale = Mask(True, window), q_BTNH.shape[-1] ** -0.5
    how = choose(impl, reason, T, can_skip=False)
    check_dtypes(q_BTNH, k_BSKH, v_BSKH)
    if how == "pallas":
        kernels = kernels_of(chip)
        options = kernels.Options(mask, scale, softcap, chip or "", False)
        return kernels.gradients(*arrays, segment_ids, q_offset, k_offset, options)
    mask_BTS = attention_mask(
        T,
        k_BSKH.shape[1],
        causal=True,
        window=window,
        segment_ids=segment_ids,
        q_offset=q_offset - k_offset,
    )
    return _gradients(*arrays, mask_BTS, scale, softcap)


def _gradients(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    out_BTNH: jax.Array,
    lse_BNT: jax.Array,
    d_out_BTNH: jax.Array,
    mask_BTS: jax.Array,
    scale: float,
    softcap: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """In plain jnp.  Numerics: products and sums in f32."""
    f32 = jnp.float32
    (B, T, N, H), K = q_BTNH.shape, k_BSKH.shape[2]
    q, out, d_out = (
        x.astype(f32).reshape(B, T, K, N // K, x.shape[3]) for x in (q_BTNH, out_BTNH, d_out_BTNH)
    )
    k, v = k_BSKH.astype(f32), v_BSKH.astype(f32)
    lse_BKGT1 = lse_BNT.reshape(B, K, N // K, T, 1)
    delta_BKGT1 = jnp.einsum("BTKGH,BTKGH->BKGT", out, d_out)[..., None]
    s_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q, k) * scale
    slope_BKGTS = jnp.ones_like(s_BKGTS)
    if softcap is not None:
        capped_BKGTS = jnp.tanh(s_BKGTS / softcap)
        s_BKGTS, slope_BKGTS = softcap * capped_BKGTS, 1 - jnp.square(capped_BKGTS)
    p_BKGTS = jnp.where(mask_BTS[:, None, None], jnp.exp(s_BKGTS - lse_BKGT1), 0.0)
    dp_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", d_out, v)
    ds_BKGTS = p_BKGTS * (dp_BKGTS - delta_BKGT1) * slope_BKGTS * scale
    dq = jnp.einsum("BKGTS,BSKH->BTKGH", ds_BKGTS, k).reshape(B, T, N, H)
    dk = jnp.einsum("BKGTS,BTKGH->BSKH", ds_BKGTS, q)
    dv = jnp.einsum("BKGTS,BTKGH->BSKH", p_BKGTS, d_out)
    return dq.astype(q_BTNH.dtype), dk.astype(k_BSKH.dtype), dv.astype(v_BSKH.dtype)
