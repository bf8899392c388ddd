# SPDX-License-Identifier: Apache-2.0
"""Work on whole matrices of parameters whose matrices are split: each device takes a few layers.

Of a stack of layers that is split inside each layer, all-to-alls make whole layers on every device,
one after another for each split dimension, and back.  Every device sends and receives what it holds,
once each way, and none ever holds more than its share of the stack.

Legend: L layers
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.sharding.rules import num_parts, spec


def by_layers(
    work: Callable[[jax.Array], jax.Array],
    x_L: jax.Array,
    axes: tuple[str, ...],
    dims: tuple[int, ...],
) -> jax.Array:
    """work(x), for work that does each layer by itself and keeps the shape.

    axes:  logical axes of x; without "layers" at the front, work(x) is left to the partitioner
    dims:  the dimensions that work needs whole
    """
    mesh_axes = [(n,) if isinstance(n, str) else n or () for n in spec(axes)]
    splits = [(dim, mesh_axes[dim]) for dim in dims if num_parts(*mesh_axes[dim]) > 1]
    if axes[0] != "layers" or all(num_parts(*names) == 1 for names in mesh_axes):
        return work(x_L)  # where only experts or layers are split: each device does what it has

    def local(x_L: jax.Array) -> jax.Array:
        L, parts = len(x_L), num_parts(*(name for _, names in splits for name in names))
        x_L = jnp.pad(x_L, ((0, -L % parts), *[(0, 0)] * (x_L.ndim - 1)))
        for dim, names in splits:
            x_L = jax.lax.all_to_all(x_L, names, split_axis=0, concat_axis=dim, tiled=True)
        x_L = work(x_L)
        for dim, names in reversed(splits):
            x_L = jax.lax.all_to_all(x_L, names, split_axis=dim, concat_axis=0, tiled=True)
        return x_L[:L]

    return jax.shard_map(local, in_specs=spec(axes), out_specs=spec(axes), check_vma=False)(x_L)
