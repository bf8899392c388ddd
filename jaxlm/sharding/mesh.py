# SPDX-License-Identifier: Apache-2.0
"""The mesh factory: the only place where devices get axis names."""

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxlm.core.errors import ConfigError
from jaxlm.sharding.config import AXES, MeshConfig


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or those given.  Raises ConfigError when the shape does not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = config.shape(len(devices))
    # Linen's logical partitioning needs Auto axes; make_mesh would default to Explicit ones
    auto = (AxisType.Auto,) * len(AXES)
    found = len({getattr(device, "slice_index", 0) for device in devices})
    if found == 1 and (config.slice == 1 or devices[0].platform == "cpu"):
        # one slice; on CPUs, spans of equal length stand for slices
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=auto, devices=devices)
    if found != config.slice:
        raise ConfigError(
            f"MeshConfig.slice={config.slice}, but the devices belong to {found} slices; "
            f"set it to {found}"
        )
    within = tuple(1 if axis == "slice" else size for axis, size in sizes.items())
    across = tuple(size if axis == "slice" else 1 for axis, size in sizes.items())
    grid: np.ndarray = mesh_utils.create_hybrid_device_mesh(within, across, devices)
    return Mesh(grid, AXES, axis_types=auto)
