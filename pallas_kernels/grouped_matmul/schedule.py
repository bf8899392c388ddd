# SPDX-License-Identifier: Apache-2.0
"""Which tile of rows meets which group, in which order: what the kernels' grids walk along.

Rows are sorted by group, tiles of rows are not aligned with groups: a tile is visited once for
each group that has rows in it, in the order of both.

    sizes 3, 0, 6; tiles of 4 rows      visits (group, tile): (0, 0) (2, 0) (2, 1) (2, 2)

There are at most tiles + groups - 1 visits, tiles + groups if empty groups are visited; a grid has
all of them, the last repeated with no rows to do.

Legend: E groups  M visits
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


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
