# SPDX-License-Identifier: Apache-2.0
"""The mesh's shape.  Standard library only."""

import dataclasses
import math

from jaxlm.core.checks import require
from jaxlm.core.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; the product must be the number of devices.  One axis may be -1:
    all devices that the others leave."""

    data: int = -1  # parameters replicated, batch split
    fsdp: int = 1  # parameters and batch split
    model: int = 1  # heads, MLP width and vocabulary split (tensor parallel)

    def __post_init__(self) -> None:
        for axis, size in dataclasses.asdict(self).items():
            require(
                size == -1 or size >= 1,
                f"MeshConfig.{axis}",
                size,
                ">= 1, or -1 for what the others leave",
            )
        sizes = [self.data, self.fsdp, self.model]
        require(sizes.count(-1) <= 1, "MeshConfig", sizes, "a mesh with at most one -1")

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """Devices along (data, fsdp, model), with -1 filled in.

        Raises ConfigError when the product is not `num_devices`.
        """
        sizes = [self.data, self.fsdp, self.model]
        known = math.prod(size for size in sizes if size != -1)
        has_free_axis = -1 in sizes
        if has_free_axis and num_devices % known == 0:
            sizes[sizes.index(-1)] = num_devices // known
        elif has_free_axis or known != num_devices:
            raise ConfigError(
                f"MeshConfig data={self.data}, fsdp={self.fsdp}, model={self.model} needs "
                f"{'a multiple of ' if has_free_axis else ''}{known} devices, found {num_devices}; set "
                "one axis to -1 to take what is there, or simulate devices with --cpu-devices"
            )
        return sizes[0], sizes[1], sizes[2]
