# SPDX-License-Identifier: Apache-2.0
"""What the three attention kernels for GPUs share: tiles of arrays, their scores and their masks.

Programs read q, k, v and the like where they lie in memory, tile by tile.  A tile's sides are
powers of two: what it covers beyond an array is not read and counts as zero.  Scores are in units
of log 2, since exponentials to the base of 2 are one instruction.

Legend: T query positions  S key positions  N query heads  K kv heads  G = N/K
        H width of q and k  V width of v  Q queries of a tile  J keys of a tile  X either
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.attention.masks import Mask, tile_mask
from pallas_kernels.tuning.attention_gpu import Blocks, padded

LOG2_E = 1.4426950408889634


class Plan(NamedTuple):
    """What a kernel is compiled for."""

    mask: Mask
    scale: float
    softcap: float | None
    blocks: Blocks
    T: int
    S: int
    K: int
    G: int
    H: int
    V: int
    has_ids: bool
    is_per_row: bool  # positions or documents differ along the batch
    precision: Any  # of the products

    @property
    def num_q_blocks(self) -> int:
        return pl.cdiv(self.T, self.blocks.queries)

    @property
    def num_k_blocks(self) -> int:
        return pl.cdiv(self.S, self.blocks.keys)

    @property
    def has_masked_tiles(self) -> bool:
        is_ragged = self.T % self.blocks.queries or self.S % self.blocks.keys
        return self.has_ids or bool(is_ragged) or self.mask != Mask(causal=False)


class Span(NamedTuple):
    """Consecutive positions: one side of a tile."""

    first: Any
    size: int
    limit: int  # where the array ends; the span may go on

    @property
    def at(self) -> jax.Array:
        """Of each position (X,) its place in the array."""
        return self.first + jnp.arange(self.size, dtype=jnp.int32)

    @property
    def is_inside(self) -> jax.Array:
        return self.at < self.limit


def queries(plan: Plan, block: Any) -> Span:
    return Span(block * plan.blocks.queries, plan.blocks.queries, plan.T)


def keys(plan: Plan, block: Any) -> Span:
    return Span(block * plan.blocks.keys, plan.blocks.keys, plan.S)


def load(ref: Any, span: Span, head: Any, width: int, *, is_whole: bool = False) -> jax.Array:
    """A tile (positions, padded width) of a ref (positions, heads, padded width).

    is_whole: the span ends within the array, as is known only at run time.
    """
    view = ref.at[pl.ds(span.first, span.size), head, :]
    mask = _inside(ref, span, width, is_whole)
    return plgpu.load(view) if mask is None else plgpu.load(view, mask=mask, other=0.0)


def store(ref: Any, span: Span, head: Any, width: int, tile: jax.Array) -> None:
    """The part of a tile that lies within the array."""
    view = ref.at[pl.ds(span.first, span.size), head, :]
    mask = _inside(ref, span, width, False)
    plgpu.store(view, tile.astype(ref.dtype), mask=mask)


def _inside(ref: Any, span: Span, width: int, is_whole: bool) -> jax.Array | None:
    padded_width = ref.shape[-1]
    is_inside = jnp.ones((span.size, padded_width), bool)
    has_tail, has_margin = not is_whole and span.limit % span.size != 0, padded_width != width
    if has_tail:
        is_inside &= span.is_inside[:, None]
    if has_margin:
        is_inside &= (jnp.arange(padded_width, dtype=jnp.int32) < width)[None, :]
    return is_inside if has_tail or has_margin else None


def load_numbers(ref: Any, span: Span, head: Any) -> jax.Array:
    """One number per position (X,) of a ref (heads, positions); zeros beyond the array."""
    view = ref.at[head, pl.ds(span.first, span.size)]
    return plgpu.load(view, mask=span.is_inside, other=0.0)


def _load_ids(ref: Any, span: Span) -> jax.Array:
    return plgpu.load(ref.at[pl.ds(span.first, span.size)], mask=span.is_inside, other=0)


def dot(plan: Plan, a: jax.Array, b: jax.Array) -> jax.Array:
    """a b in f32."""
    return jax.lax.dot(a, b, precision=plan.precision, preferred_element_type=jnp.float32)


def scores(plan: Plan, products: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """(scores in units of log 2, their derivative by scale * products or None where that is 1)."""
    if plan.softcap is None:
        return products * (plan.scale * LOG2_E), None
    bent = jnp.tanh(products * (plan.scale / plan.softcap))
    return bent * (plan.softcap * LOG2_E), 1.0 - bent * bent


def visible(
    plan: Plan, q: Span, k: Span, distance: Any, q_ids_ref: Any, k_ids_ref: Any, *, swapped: bool
) -> jax.Array | None:
    """Which queries see which keys, (Q, J), or (J, Q) if swapped; None if all do.

    distance: from position 0 of the keys to position 0 of the queries.
    """
    along_q = (None, slice(None)) if swapped else (slice(None), None)
    along_k = along_q[::-1]
    ids: tuple[Any, ...] = ()
    if plan.has_ids:
        ids = _load_ids(q_ids_ref, q)[along_q], _load_ids(k_ids_ref, k)[along_k]
    is_seen = tile_mask(plan.mask, (q.at + distance)[along_q], k.at[along_k], *ids)
    if plan.S % k.size:
        is_key = k.is_inside[along_k]
        is_seen = is_key if is_seen is None else is_seen & is_key
    return is_seen


def hide(scores: jax.Array, is_seen: jax.Array | None) -> jax.Array:
    return scores if is_seen is None else jnp.where(is_seen, scores, -jnp.inf)


def visit(
    plan: Plan, ranges_ref: Any, block: Any, tile: Callable[[bool, Any, Any], Any], state: Any
) -> Any:
    """state after tile(is_masked, number, state) of every tile that the block needs.

    First those wholly inside the mask, then the ones on both sides of them.
    """
    first, full_first, full_last, last = (ranges_ref[block, x] for x in range(4))
    state = jax.lax.fori_loop(full_first, full_last, lambda j, s: tile(False, j, s), state)
    if not plan.has_masked_tiles:
        return state
    before = full_first - first

    def masked(x: Any, state: Any) -> Any:
        return tile(True, jnp.where(x < before, first + x, full_last + x - before), state)

    return jax.lax.fori_loop(0, before + last - full_last, masked, state)


def specs(plan: Plan) -> dict[str, Any]:
    """Blocks of a program (block, head, row of the batch): its row, for it may read any tile.

    "ranges" is a function of the number of blocks.
    """
    T, S = plan.num_q_blocks * plan.blocks.queries, plan.num_k_blocks * plan.blocks.keys
    H, V, N = padded(plan.H), padded(plan.V), plan.K * plan.G
    row = lambda *shape: pl.BlockSpec((None, *shape), lambda i, n, b: (b, *[0] * len(shape)))
    batch = lambda b: b if plan.is_per_row else 0
    return {
        "ranges": lambda num: pl.BlockSpec((None, num, 4), lambda i, n, b: (batch(b), 0, 0)),
        "distance": pl.BlockSpec((1,), lambda i, n, b: (batch(b),)),
        "q": row(T, N, H),
        "k": row(S, plan.K, H),
        "v": row(S, plan.K, V),
        "out": row(T, N, V),
        "number": row(N, T),
        "q_ids": row(T) if plan.has_ids else None,
        "k_ids": row(S) if plan.has_ids else None,
        "sinks": pl.BlockSpec((N,), lambda i, n, b: (0,)),
    }
