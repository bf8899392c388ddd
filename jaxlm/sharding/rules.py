# SPDX-License-Identifier: Apache-2.0
"""Which mesh axes split which logical axis: the one table behind every parallelism.

Rules are tried from the top, and a mesh axis splits at most one dimension of an array.  So an
activation (batch, seq, embed) gives fsdp to its batch, and a weight (embed, ffn) gives it to embed.
"""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.sharding.config import ContextAttention, MeshConfig

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

BATCH = ("slice", "data", "fsdp", "expert")

_BASE: Rules = (
    ("rows", (*BATCH, "pipeline")),  # of embedding, output and loss, which belong to no stage
    ("batch", BATCH),  # rows of what a layer sees
    ("seq", "context"),
    ("layers", "pipeline"),
    ("expert", "expert"),
    ("embed", ("fsdp", "expert", "context")),
    ("embed", ("fsdp", "context")),  # of the matrices of an expert
    ("heads", "model"),
    ("kv_heads", "model"),
    ("ffn", "model"),
    ("vocab", "model"),
    ("head_dim", None),
    ("norm", None),
    ("router", None),  # one logit per expert, all on the token's device
    ("balance", None),
)

_HEADS: Rules = (("query_heads", "model"), ("key_heads", "model"))

# How attention brings queries and keys together where the sequence is split (nn/context.py).
_CONTEXT: dict[ContextAttention, Rules] = {
    "ring": (("query_seq", "context"), ("key_seq", "context"), *_HEADS),
    "all_gather": (("query_seq", "context"), ("key_seq", None), *_HEADS),
    "ulysses": (
        ("query_seq", None),
        ("key_seq", None),
        ("query_heads", ("model", "context")),
        ("key_heads", ("model", "context")),
    ),
}

# The residual stream between blocks, where norms and sums need no neighbours along the sequence.
_RESIDUAL: dict[bool, Rules] = {
    False: (("residual_seq", "context"),),
    True: (("residual_seq", ("context", "model")),),
}


def rules_of(config: MeshConfig) -> Rules:
    """The table of a strategy.  Parameters are split alike in all of them."""
    return (*_BASE, *_CONTEXT[config.context_attention], *_RESIDUAL[config.sequence_parallel])


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Mesh axes of an array with these logical axes, by the rules around the trace."""
    rules = nn.get_logical_axis_rules() or rules_of(MeshConfig())
    return nn.logical_to_mesh_axes(axes, rules) or PartitionSpec()


ROWS = spec(("rows", "seq"))  # a batch as it comes: rows and positions


def shardings(axes_tree: Any, mesh: Mesh) -> Any:
    """NamedSharding for each tuple of logical axes in a tree."""
    is_axes = lambda leaf: isinstance(leaf, tuple)
    return jax.tree.map(lambda a: NamedSharding(mesh, spec(a)), axes_tree, is_leaf=is_axes)


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """`x`, split as its logical axes say over the mesh that surrounds the trace, if there is one.

    A dimension that does not divide stays whole: one row, or one position, in decoding.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    names = [() if n is None else (n,) if isinstance(n, str) else n for n in spec(axes)]
    fits = [dim % num_parts(*axis) == 0 for dim, axis in zip(x.shape, names, strict=True)]
    kept = [axis if fit else None for axis, fit in zip(names, fits, strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept))


def num_parts(*mesh_axes: str) -> int:
    """Devices along these axes of the mesh that surrounds the trace; 1 without one."""
    sizes = jax.sharding.get_abstract_mesh().shape
    parts = 1
    for axis in mesh_axes:
        parts *= sizes.get(axis, 1)
    return parts


def is_on_mesh() -> bool:
    """Whether the mesh that surrounds the trace has more than one device."""
    return num_parts(*jax.sharding.get_abstract_mesh().axis_names) > 1
