# SPDX-License-Identifier: Apache-2.0
"""What the compiler is told beside the program, by device: nothing that changes a result.

On v6e the compiler turns every reduce-scatter of gradients into an all-reduce and a slice, twice the
traffic and not beside the products, unless the SparseCores do it (docs/parallelism.md, "Gradients").
"""

from jax.sharding import Mesh

from jaxlm.sharding.rules import spec

_V6E = {"xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true"}
OPTIONS = {"TPU v6 lite": _V6E, "TPU v6e": _V6E}  # by device kind


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """For jax.jit; None where parameters are not split, so that gradients are not either."""
    (axes,) = spec(("embed",))
    if all(mesh.shape[axis] == 1 for axis in axes):
        return None
    return OPTIONS.get(mesh.devices.flat[0].device_kind)
