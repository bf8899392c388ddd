# SPDX-License-Identifier: Apache-2.0
"""What the compiler is told beside the program, by device: nothing that changes a result.

Weights are gathered beside the products of the layer before, instead of in between; by default
they may come by all-reduces of arrays that are zero elsewhere, twice the bytes (docs/plan.md has
the effect).  Gradients that are summed by all-reduces are summed beside the products, too.  On v6e
the compiler turns every reduce-scatter of gradients into an all-reduce and a slice, twice the
traffic and not beside the products, unless the SparseCores do it (docs/parallelism.md, "Gradients").
"""

from jax.sharding import Mesh

from jaxlm.sharding.rules import spec

Options = dict[str, bool | str]

GATHER: Options = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_prefer_async_allgather_to_allreduce": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}
SUM: Options = {
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
}
SCATTER: Options = {"xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true"}
BY_DEFAULT = ("TPU7x",)  # there all gathers and scatters are asynchronous without being asked for
WITH_SPARSE_CORES = ("TPU v6 lite", "TPU v6e")  # kinds of devices


def compiler_options(mesh: Mesh) -> Options | None:
    """For jax.jit, on more than one TPU chip; None elsewhere."""
    device = mesh.devices.flat[0]
    if mesh.size == 1 or device.platform != "tpu" or device.device_kind in BY_DEFAULT:
        return None
    (axes,) = spec(("embed",))
    is_split = any(mesh.shape[axis] > 1 for axis in axes)  # parameters, and so their gradients
    if is_split and device.device_kind in WITH_SPARSE_CORES:
        return GATHER | SCATTER
    return GATHER | SUM
