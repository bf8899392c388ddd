# SPDX-License-Identifier: Apache-2.0
"""Which mesh axes split which logical axis: the one table behind every parallelism.

A mesh axis splits at most one dimension of an array, the first that asks.  So an activation
(batch, seq, embed) gives fsdp to its batch, and a weight (embed, ffn) gives it to embed.
"""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("seq", None),
    ("embed", "fsdp"),
    ("heads", "model"),
    ("kv_heads", "model"),
    ("ffn", "model"),
    ("vocab", "model"),
    ("head_dim", None),
    ("norm", None),
    ("layers", None),
)

ROWS = PartitionSpec(("data", "fsdp"))  # a batch: rows split, positions whole


def spec(axes: tuple[str, ...]) -> PartitionSpec:
    """Mesh axes of an array with these logical axes."""
    return nn.logical_to_mesh_axes(axes, RULES) or PartitionSpec()


def shardings(axes_tree: Any, mesh: Mesh) -> Any:
    """NamedSharding for each tuple of logical axes in a tree."""
    is_axes = lambda leaf: isinstance(leaf, tuple)
    return jax.tree.map(lambda a: NamedSharding(mesh, spec(a)), axes_tree, is_leaf=is_axes)
