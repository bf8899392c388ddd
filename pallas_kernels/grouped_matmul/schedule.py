# SPDX-License-Identifier: Apache-2.0
"""Which tile of rows meets which group, in which order: what the kernels' grids walk along.

Rows are sorted by group, tiles of rows are not aligned with groups: a tile is visited once for
each group that has rows in it, in the order of both.

    sizes 3, 0, 6; tiles of 4 rows      visits (group, tile): (0, 0) (2, 0) (2, 1) (2, 2)

There are at most tiles + groups - 1 visits, tiles + groups if empty groups are visited; a grid has
all of them, the last repeated with no rows to do.

Legend: E groups  M visits  T tiles  P parts
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

ALIGN = 16  # rows of a register of bf16


class Visits(NamedTuple):
    """Of each visit, int32."""

    group_M: jax.Array
    tile_M: jax.Array
    start_M: jax.Array  # the rows of the group, counted through all tiles
    stop_M: jax.Array


def visits(sizes_E: jax.Array, rows: int, tile: int, *, visit_empty: bool) -> Visits:
    """Visits of `rows` rows in tiles of `tile`; sizes_E add up to `rows` at most.

    visit_empty: whether a group without rows is visited too, once
    """
    E = len(sizes_E)
    stop_E = jnp.cumsum(sizes_E.astype(jnp.int32))
    start_E = stop_E - sizes_E
    num_tiles = -(-rows // tile)
    first_E = jnp.minimum(start_E // tile, num_tiles - 1)
    num_E = jnp.where(sizes_E > 0, (stop_E - 1) // tile - first_E + 1, int(visit_empty))
    end_E = jnp.cumsum(num_E)
    index_M = jnp.arange(num_tiles + E)
    visit_M = jnp.minimum(index_M, end_E[-1] - 1)
    group_M = jnp.searchsorted(end_E, visit_M, side="right").astype(jnp.int32)
    tile_M = first_E[group_M] + visit_M - (end_E - num_E)[group_M]
    is_repeated_M = index_M >= end_E[-1]
    start_M = start_E[group_M]
    return Visits(group_M, tile_M, start_M, jnp.where(is_repeated_M, start_M, stop_E[group_M]))


def num_pieces(start: jax.Array, stop: jax.Array, piece: int) -> jax.Array:
    """Pieces that rows from start to stop take; they begin at rows that memory is aligned to."""
    begin = start // min(ALIGN, piece) * min(ALIGN, piece)
    return jnp.where(stop > start, -((begin - stop) // piece), 0)


def shared(plan: Visits, tile: int, piece: int, num_tiles: int, parts: int) -> Visits:
    """The visits of one or two parts, (P, M): each has tiles of its own, and half of the work.

    Work is counted in rows, by pieces: tiles at the borders of groups take more than others, and
    many small groups have many borders.
    """
    first_M = plan.tile_M * tile
    start_M = jnp.maximum(plan.start_M - first_M, 0)
    stop_M = jnp.minimum(plan.stop_M - first_M, tile)
    rows_M = num_pieces(start_M, stop_M, piece) * piece
    rows_T = jnp.zeros(num_tiles, jnp.int32).at[plan.tile_M].add(rows_M)
    middle_T = jnp.cumsum(rows_T) - rows_T // 2
    index_T = jnp.arange(num_tiles)
    part_T = middle_T * parts // jnp.maximum(jnp.sum(rows_T), 1)
    part_T = jnp.clip(part_T, parts - num_tiles + index_T, index_T)  # none is without a tile
    part_M = part_T[plan.tile_M]
    begin_P, end_P = (
        jnp.searchsorted(part_M, jnp.arange(parts), side=s) for s in ("left", "right")
    )
    index_PM = begin_P[:, None] + jnp.arange(len(part_M))[None]
    is_repeated_PM = index_PM >= end_P[:, None]
    own = Visits(*(a_M[jnp.minimum(index_PM, end_P[:, None] - 1)] for a_M in plan))
    return own._replace(stop_M=jnp.where(is_repeated_PM, own.start_M, own.stop_M))
