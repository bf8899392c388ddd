# SPDX-License-Identifier: Apache-2.0
"""Attention for backends without a kernel: blocks of queries, each with the keys it can need.

A causal mask hides half of the scores, a window nearly all of them.  Splitting the queries into a
few blocks and slicing the keys for each leaves most of the hidden part uncomputed.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H head width
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import reference

NUM_BLOCKS = 4  # of queries; more save little (1/2 + 1/(2 * blocks) of the scores remain)
MIN_BLOCK = 64  # queries: below this the products get too small to be worth the split


def applies(
    q_BTNH: jax.Array, k_BSKH: jax.Array, *, causal: bool, q_offset: jax.Array | int
) -> bool:
    """Whether blocks can skip anything: causal self-attention over the same positions."""
    same_positions = isinstance(q_offset, int) and q_offset == 0
    return causal and same_positions and q_BTNH.shape[1] == k_BSKH.shape[1]


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    causal: bool,
    q_offset: jax.Array | int,
    window: int | None,
    segment_ids: tuple[jax.Array, jax.Array] | None,
    **scores: Any,
) -> tuple[jax.Array, jax.Array]:
    """(output, lse) as reference.attention.  Raises ValueError where the blocks could skip nothing."""
    if not applies(q_BTNH, k_BSKH, causal=causal, q_offset=q_offset):
        raise ValueError("attention impl 'xla' needs causal self-attention without an offset")
    T = q_BTNH.shape[1]
    block = max(MIN_BLOCK, -(-T // NUM_BLOCKS))
    parts = []
    for start in range(0, max(T, 1), block):  # without queries one block, which is empty
        stop = min(start + block, T)
        first = 0 if window is None else max(0, start - window + 1)
        ids = segment_ids and (segment_ids[0][:, start:stop], segment_ids[1][:, first:stop])
        part = reference.attention(
            q_BTNH[:, start:stop],
            k_BSKH[:, first:stop],
            v_BSKH[:, first:stop],
            causal=True,
            window=window,
            segment_ids=ids,
            q_offset=start - first,
            return_lse=True,
            **scores,
        )
        parts.append(part)
    outs, lses = zip(*parts, strict=True)
    return jnp.concatenate(outs, axis=1), jnp.concatenate(lses, axis=2)
