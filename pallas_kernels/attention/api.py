# SPDX-License-Identifier: Apache-2.0
"""Attention: the one function that models call.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H head width
"""

from typing import Any, Literal

import jax

from pallas_kernels.attention import reference, xla

Impl = Literal["auto", "reference", "xla"]


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
    softcap: float | None = None,
    sinks_N: jax.Array | None = None,
    q_offset: jax.Array | int = 0,
    impl: Impl = "auto",
) -> jax.Array:
    """softmax(scale * q k^T) v with the masks below, (B, T, N, width of v) in q's dtype.

    scale:        None means 1/sqrt(H)
    causal:       query t, at position q_offset + t, sees keys 0..q_offset + t
    window:       a query sees the newest `window` keys only, its own position included
    segment_ids:  ids of queries (B, T) and keys (B, S); a query sees keys of its own id
    softcap:      scores become cap * tanh(scores / cap)
    sinks_N:      one learned logit per head that takes weight and gives nothing
    q_offset:     runtime int, scalar or (B,): where a cache continues
    impl:         "reference" is the definition, "xla" visits only the blocks of queries and keys
                  that the mask can need, "auto" takes "xla" where it applies
    Raises ValueError if N is no multiple of K, or for an unknown impl.
    """
    N, K = q_BTNH.shape[2], k_BSKH.shape[2]
    if N % K:
        raise ValueError(f"{N} query heads are no multiple of {K} kv heads")
    scale = q_BTNH.shape[-1] ** -0.5 if scale is None else scale
    masks: dict[str, Any] = dict(
        causal=causal, window=window, segment_ids=segment_ids, q_offset=q_offset
    )
    scores: dict[str, Any] = dict(scale=scale, softcap=softcap, sinks_N=sinks_N)
    if impl == "auto":
        impl = (
            "xla" if xla.applies(q_BTNH, k_BSKH, causal=causal, q_offset=q_offset) else "reference"
        )
    if impl == "xla":
        return xla.attention(q_BTNH, k_BSKH, v_BSKH, **masks, **scores)
    if impl == "reference":
        return reference.attention(q_BTNH, k_BSKH, v_BSKH, **masks, **scores)
    raise ValueError(f"unknown attention impl {impl!r}; allowed: auto, reference, xla")
