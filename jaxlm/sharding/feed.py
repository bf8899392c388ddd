# SPDX-License-Identifier: Apache-2.0
"""Host rows to a global array: each process reads and gives only the rows its devices hold.

Legend: B batch over all processes  T positions
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.sharding.rules import ROWS


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """The span of rows that this process's devices hold of a global batch."""
    rows = NamedSharding(mesh, PartitionSpec(ROWS[0]))
    spans = rows.addressable_devices_indices_map((batch_size,)).values()
    bounds = [index[0].indices(batch_size) for index in spans if index is not None]
    return slice(min(lo for lo, _, _ in bounds), max(hi for _, hi, _ in bounds))


def to_global(
    batch: dict[str, np.ndarray], mesh: Mesh, batch_size: int, rows: slice
) -> dict[str, jax.Array]:
    """Arrays (B, T) over the mesh from this process's `rows` of each."""
    sharding = NamedSharding(mesh, ROWS)

    def place(local: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            lo, hi, _ = index[0].indices(batch_size)
            return local[lo - rows.start : hi - rows.start, *index[1:]]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

    return {name: place(local) for name, local in batch.items()}
