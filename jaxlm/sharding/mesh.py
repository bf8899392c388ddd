# SPDX-License-Identifier: Apache-2.0
"""The mesh factory: the only place where devices get axis names."""

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxlm.sharding.config import AXES, MeshConfig


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or those given.  Raises ConfigError when the shape does not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = config.shape(len(devices))
    found = len({getattr(device, "slice_index", 0) for device in devices})
    if found == 1 and (config.slice == 1 or devices[0].platform == "cpu"):
        # one slice; on CPUs, spans of equal length stand for slices
        grid = mesh_utils.create_device_mesh(
            tuple(sizes.values()), devices, allow_split_physical_axes=True
        )
    else:
        config.check_slices(found)
        within = [1 if axis == "slice" else size for axis, size in sizes.items()]
        across = [size if axis == "slice" else 1 for axis, size in sizes.items()]
        grid = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    # Linen's logical partitioning needs Auto axes; the default may become Explicit ones
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
