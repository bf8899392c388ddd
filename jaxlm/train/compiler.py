# SPDX-License-Identifier: Apache-2.0
"""What the compiler is told beside the program, by device: nothing that changes a result.

Weights are gathered beside the products of the layer before, instead of in between; by default
they may come by all-reduces of arrays that are zero elsewhere, twice the bytes.  Gradients are
summed beside the products, too: by the SparseCores where there are some, each array for itself (by
default the compiler joins those of a layer, and does what it joined last).  docs/plan.md,
"Asynchronous by option", has the effect of each.

JAXLM_COMPILER_OPTIONS="name=value other=" lies over these: it adds and replaces, and a name without a
value is left to the compiler, such as one that an older compiler does not know.
"""

import os
from typing import TYPE_CHECKING

from jaxlm.core.errors import ConfigError

if TYPE_CHECKING:  # a plan reads the environment without JAX
    from jax.sharding import Mesh

Options = dict[str, bool | str]
VARIABLE = "JAXLM_COMPILER_OPTIONS"

GATHER: Options = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_prefer_async_allgather_to_allreduce": True,
}
BESIDE_PRODUCTS: Options = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}
SUM: Options = {
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_jf_crs_combiner_threshold_count": "1",
}
SUM_BY_SPARSE_CORES: Options = {
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
    "xla_jf_crs_combiner_threshold_count": "1",
}
BY_DEFAULT = ("TPU7x",)  # kinds of devices that gather and sum beside the products unasked
WITH_SPARSE_CORES = ("TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")


def compiler_options(mesh: "Mesh") -> Options | None:
    """For jax.jit; None where there is nothing to say.

    Raises ConfigError for a JAXLM_COMPILER_OPTIONS that cannot be read.
    """
    told = from_environment()
    options = {name: value for name, value in (_own(mesh) | told).items() if value != ""}
    return options or None


def from_environment() -> dict[str, str]:
    """What JAXLM_COMPILER_OPTIONS says, by name; raises ConfigError where a part is no name=value."""
    told = {}
    for part in os.environ.get(VARIABLE, "").split():
        name, equals, value = part.removeprefix("--").partition("=")
        if not (name and equals):
            raise ConfigError(
                f"{VARIABLE} must be name=value parts with spaces between, or name= to leave an option "
                f"out; got {part!r}"
            )
        told[name] = value
    return told


def _own(mesh: "Mesh") -> Options:
    """Of more than one TPU chip."""
    device = mesh.devices.flat[0]
    if mesh.size == 1 or device.platform != "tpu":
        return {}
    if device.device_kind in BY_DEFAULT:
        return GATHER
    has_cores = device.device_kind in WITH_SPARSE_CORES
    return GATHER | BESIDE_PRODUCTS | (SUM_BY_SPARSE_CORES if has_cores else SUM)
