# SPDX-License-Identifier: Apache-2.0
"""Attention in plain jnp: the definition that every other implementation is tested against.

    out = softmax(cap * tanh(scale * q k^T / cap) + mask) v

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  G = N/K
        H head width of q and k  (v may be of another width)
"""

from typing import Any

import jax
import jax.numpy as jnp


def attention_mask(
    num_queries: int,
    num_keys: int,
    *,
    causal: bool,
    window: int | None,
    segment_ids: tuple[jax.Array, jax.Array] | None,
    q_offset: jax.Array | int = 0,
) -> jax.Array:
    """True where a query may look at a key: (1 or B, T, S).

    Query t stands at position q_offset + t, key s at position s.  A query sees keys of its own
    segment, none after itself when causal, and only the `window` newest of those.
    """
    q_pos_BT1 = jnp.arange(num_queries)[None, :, None] + jnp.reshape(q_offset, (-1, 1, 1))
    k_pos_11S = jnp.arange(num_keys)[None, None, :]
    mask_BTS = jnp.ones((1, num_queries, num_keys), bool)
    if causal:
        mask_BTS &= k_pos_11S <= q_pos_BT1
    if window is not None:
        mask_BTS &= k_pos_11S > q_pos_BT1 - window
        if not causal:
            mask_BTS &= k_pos_11S < q_pos_BT1 + window
    if segment_ids is not None:
        q_ids_BT, k_ids_BS = segment_ids
        mask_BTS &= q_ids_BT[:, :, None] == k_ids_BS[:, None, :]
    return mask_BTS


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
    softcap: float | None = None,
    sinks_N: jax.Array | None = None,
    q_offset: jax.Array | int = 0,
    return_lse: bool = False,
) -> Any:
    """Attention output (B, T, N, width of v), in q's dtype; with return_lse (output, lse (B, N, T)).

    A sink is one more logit per head in the softmax, whose value is zero (arXiv:2309.17453, as a
    learned scalar).  A query that may look at nothing gets zeros.  lse is the log of the sum
    of the exponentials of all scores and sinks, in f32: -inf where there are none.
    Numerics: scores, softmax and the sums over keys in f32; probabilities in v's dtype.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    f32 = jnp.float32
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=f32)
    scores_BKGTS *= scale
    if softcap is not None:
        scores_BKGTS = softcap * jnp.tanh(scores_BKGTS / softcap)
    mask_BTS = attention_mask(
        T, S, causal=causal, window=window, segment_ids=segment_ids, q_offset=q_offset
    )
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, -jnp.inf)

    least = None if S else -jnp.inf  # the maximum of no keys
    peak_BKGT1 = jnp.max(scores_BKGTS, axis=-1, keepdims=True, initial=least)
    sinks_1KG11 = None
    if sinks_N is not None:
        sinks_1KG11 = sinks_N.astype(f32).reshape(1, K, N // K, 1, 1)
        peak_BKGT1 = jnp.maximum(peak_BKGT1, sinks_1KG11)
    # a row of nothing but -inf: any finite peak turns it into zeros instead of NaNs
    peak_BKGT1 = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak_BKGT1), peak_BKGT1, 0.0))
    weights_BKGTS = jnp.exp(scores_BKGTS - peak_BKGT1)
    total_BKGT1 = jnp.sum(weights_BKGTS, axis=-1, keepdims=True)
    if sinks_1KG11 is not None:
        total_BKGT1 += jnp.exp(sinks_1KG11 - peak_BKGT1)
    is_blind_BKGT1 = total_BKGT1 == 0
    total_BKGT1 = jnp.where(is_blind_BKGT1, 1.0, total_BKGT1)
    probs_BKGTS = weights_BKGTS / total_BKGT1
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    lse_BKGT1 = jnp.where(is_blind_BKGT1, -jnp.inf, jnp.log(total_BKGT1) + peak_BKGT1)
    out_BTNH = out_BTKGH.reshape(B, T, N, v_BSKH.shape[-1]).astype(q_BTNH.dtype)
    return (out_BTNH, lse_BKGT1.reshape(B, N, T)) if return_lse else out_BTNH
