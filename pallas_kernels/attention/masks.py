# SPDX-License-Identifier: Apache-2.0
"""Which queries see which keys, and which tiles of them a kernel has to visit.

Query t stands at position q_start + t, key s at k_start + s.  With d = q_position - k_position,
a query sees a key where

    d >= 0 (causal)     d < window (and d > -window if not causal)     q_id == k_id (segments)

A tile is *needed* if the ranges of its positions and of its segment ids leave room for one such
pair, and *full* if every pair of it is one.  Both are judged by ranges (and by the ids modulo 32,
for padding that ends a row with an id of its own), which is tight for documents packed one after
the other and errs towards visiting for ids in any other order.

Legend: B batch  T query positions  S key positions  I blocks of queries  J blocks of keys
"""

import dataclasses

import jax
import jax.numpy as jnp

Start = jax.Array | int  # the position of the first query or key: a scalar or (B,)


@dataclasses.dataclass(frozen=True)
class Mask:
    """The static part of a mask; segment ids and positions are known at run time only."""

    causal: bool = True
    window: int | None = None  # a query sees keys nearer than this, its own position included


def tile_mask(
    mask: Mask,
    q_pos: jax.Array,
    k_pos: jax.Array,
    q_ids: jax.Array | None = None,
    k_ids: jax.Array | None = None,
) -> jax.Array | None:
    """True where a query sees a key; None if all do.  Arguments broadcast against each other."""
    terms = []
    if mask.causal:
        terms.append(q_pos >= k_pos)
    if mask.window is not None:
        terms.append(q_pos - mask.window < k_pos)
        if not mask.causal:
            terms.append(q_pos + mask.window > k_pos)
    if q_ids is not None and k_ids is not None:
        terms.append(q_ids == k_ids)
    visible = None
    for term in terms:
        visible = term if visible is None else visible & term
    return visible


def block_ranges(
    mask: Mask,
    q_ids_BT: jax.Array | None,
    k_ids_BS: jax.Array | None,
    q_start: Start,
    k_start: Start,
    num_q: int,
    num_k: int,
    block_q: int,
    block_k: int,
    *,
    by_key: bool = False,
) -> jax.Array:
    """For every block of queries (first, full_first, full_last, last) in tiles of keys: (B, I, 4).

    Tiles [first, last) have to be visited, of which [full_first, full_last) need no mask; a
    ragged last tile of keys is never full.  first <= full_first <= full_last <= last.
    by_key: for every block of keys, in tiles of queries: (B, J, 4).  Then no tile that is ragged
    on either side is full, for what stands behind the last query would enter the sums over queries.
    B is 1 where neither ids nor starts differ along the batch.
    """
    q_span, k_span = _positions(q_start, num_q, block_q), _positions(k_start, num_k, block_k)
    needed_BIJ, full_BIJ = _by_position(mask, *q_span, *k_span)
    if q_ids_BT is not None and k_ids_BS is not None:
        q_ids, k_ids = _summary(q_ids_BT, block_q), _summary(k_ids_BS, block_k)
        may_BIJ, must_BIJ = _by_id(*q_ids, *k_ids)
        needed_BIJ, full_BIJ = needed_BIJ & may_BIJ, full_BIJ & must_BIJ
    is_whole = lambda num, block: (jnp.arange(-(-num // block)) + 1) * block <= num
    full_BIJ &= is_whole(num_k, block_k)[None, None, :]
    if not by_key:
        return _ranges(needed_BIJ, full_BIJ)
    full_BIJ &= is_whole(num_q, block_q)[None, :, None]
    return _ranges(needed_BIJ.swapaxes(1, 2), full_BIJ.swapaxes(1, 2))


def _by_position(
    mask: Mask, q_low_BI: jax.Array, q_high_BI: jax.Array, k_low_BJ: jax.Array, k_high_BJ: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(needed, full), each (1 or B, I, J) and boolean, from the first and last positions."""
    # the range of distances in a tile
    nearest = q_low_BI[:, :, None] - k_high_BJ[:, None, :]
    farthest = q_high_BI[:, :, None] - k_low_BJ[:, None, :]
    needed = full = farthest >= nearest
    if mask.causal:
        needed &= farthest >= 0
        full &= nearest >= 0
    if mask.window is not None:
        needed &= nearest < mask.window
        full &= farthest < mask.window
        if not mask.causal:
            needed &= farthest > -mask.window
            full &= nearest > -mask.window
    return needed, full


def _positions(start: Start, num: int, block: int) -> tuple[jax.Array, jax.Array]:
    """First and last position of every block: two of (1 or B, blocks)."""
    first = jnp.arange(0, num, block, dtype=jnp.int32)
    last = jnp.minimum(first + block, num) - 1
    start_B1 = jnp.reshape(jnp.asarray(start, jnp.int32), (-1, 1))
    return start_B1 + first[None, :], start_B1 + last[None, :]


def _summary(ids: jax.Array, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Least and greatest id of every block, and the set of its ids modulo 32: each (B, blocks)."""
    B, num = ids.shape
    padded = jnp.pad(ids, ((0, 0), (0, -num % block)), mode="edge")
    blocks = padded.reshape(B, -1, block)
    bits = jnp.left_shift(jnp.uint32(1), (blocks % 32).astype(jnp.uint32))
    return blocks.min(-1), blocks.max(-1), jnp.bitwise_or.reduce(bits, axis=-1)


def _by_id(*q_and_k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether ids of a tile may be, and must be, equal, from the summaries of both sides."""
    q_least, q_most, q_bits = (x[:, :, None] for x in q_and_k[:3])
    k_least, k_most, k_bits = (x[:, None, :] for x in q_and_k[3:])
    may = (q_least <= k_most) & (k_least <= q_most) & (q_bits & k_bits != 0)
    return may, (q_least == k_most) & (k_least == q_most)


def _ranges(needed_BIJ: jax.Array, full_BIJ: jax.Array) -> jax.Array:
    """Per row of tiles: all needed ones in [first, last), the first run of full ones within."""
    J = needed_BIJ.shape[2]
    tile_J = jnp.arange(J, dtype=jnp.int32)[None, None, :]
    last = jnp.max(jnp.where(needed_BIJ, tile_J + 1, 0), axis=-1)
    first = jnp.minimum(jnp.min(jnp.where(needed_BIJ, tile_J, J), axis=-1), last)
    full_first = jnp.clip(jnp.min(jnp.where(full_BIJ, tile_J, J), axis=-1), first, last)
    ends = ~full_BIJ & (tile_J >= full_first[..., None])
    full_last = jnp.clip(jnp.min(jnp.where(ends, tile_J, J), axis=-1), full_first, last)
    return jnp.stack([first, full_first, full_last, last], axis=-1)
