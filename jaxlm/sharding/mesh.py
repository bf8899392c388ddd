# SPDX-License-Identifier: Apache-2.0
"""The mesh factory: the only place where devices get axis names."""

import jax
from jax.sharding import AxisType, Mesh

from jaxlm.sharding.config import MeshConfig

AXES = ("data", "fsdp", "model")


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or those given.  Raises ConfigError when the shape does not fit."""
    devices = jax.devices() if devices is None else devices
    # Linen's logical partitioning needs Auto axes; make_mesh would default to Explicit ones
    auto = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(config.shape(len(devices)), AXES, axis_types=auto, devices=devices)
