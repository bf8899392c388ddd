# SPDX-License-Identifier: Apache-2.0
"""The mesh's shape.  Standard library only."""

import dataclasses
import math
from typing import Literal, NamedTuple

from jaxlm.core.checks import require
from jaxlm.core.errors import ConfigError

# In the order of the devices: neighbours along the last axes are the nearest.
AXES = ("slice", "pipeline", "data", "fsdp", "expert", "context", "model")

ContextAttention = Literal["ring", "all_gather", "ulysses"]


class Schedule(NamedTuple):
    """Of a pipeline: every micro-batch goes `repeats` times round the stages."""

    stages: int
    micro_batches: int
    repeats: int

    @property
    def ticks(self) -> int:
        return self.repeats * self.micro_batches + self.stages - 1

    @property
    def idle_frac(self) -> float:
        """Of each stage's time, where all take the same."""
        return (self.stages - 1) / self.ticks


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; the product must be the number of devices.  One axis may be -1:
    all devices that the others leave."""

    data: int = -1  # parameters replicated, batch split
    fsdp: int = 1  # parameters and batch split
    model: int = 1  # heads, MLP width and vocabulary split (tensor parallel)
    context: int = 1  # sequence split
    expert: int = 1  # experts split; elsewhere as fsdp
    pipeline: int = 1  # layers split into stages
    slice: int = 1  # slices joined by the data-centre network, parameters replicated, batch split
    context_attention: ContextAttention = "ring"  # how queries meet keys of other devices
    sequence_parallel: bool = True  # residual stream split along the sequence over `model` too
    pipeline_micro_batches: int | None = None  # of each stage's queue; None: as many as stages
    pipeline_repeats: int = 1  # times that each micro-batch goes round the stages

    def __post_init__(self) -> None:
        sizes = [getattr(self, axis) for axis in AXES]
        for axis, size in zip(AXES, sizes, strict=True):
            require(
                size == -1 or size >= 1,
                f"MeshConfig.{axis}",
                size,
                ">= 1, or -1 for what the others leave",
            )
        require(sizes.count(-1) <= 1, "MeshConfig", sizes, "a mesh with at most one -1")
        for field in ("slice", "pipeline", "pipeline_repeats"):
            require(getattr(self, field) >= 1, f"MeshConfig.{field}", getattr(self, field), ">= 1")
        queue = self.pipeline_micro_batches
        require(
            queue is None or queue >= self.pipeline,
            "MeshConfig.pipeline_micro_batches",
            queue,
            f"at least MeshConfig.pipeline={self.pipeline}, or None",
        )
        if self.pipeline == 1:
            for field in ("pipeline_micro_batches", "pipeline_repeats"):
                value = getattr(self, field)
                told = "1 or left out where there are no stages, MeshConfig.pipeline=1"
                require(value in (None, 1), f"MeshConfig.{field}", value, told)

    def shape(
        self, num_devices: int, other: str = "simulate devices with --cpu-devices"
    ) -> dict[str, int]:
        """Devices along every axis, in the order of AXES, with -1 filled in.

        other: how to get another number of devices, for who is told that it does not fit

        Raises ConfigError when the product is not `num_devices`.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        known = math.prod(size for size in sizes.values() if size != -1)
        free = next((axis for axis, size in sizes.items() if size == -1), None)
        if free is not None and num_devices % known == 0:
            return sizes | {free: num_devices // known}
        if free is not None or known != num_devices:
            told = ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1)
            raise ConfigError(
                f"MeshConfig {told or 'of one device'} needs "
                f"{'a multiple of ' if free else ''}{known} devices, found {num_devices}; set "
                f"one axis to -1 to take what is there, or {other}"
            )
        return sizes

    def check_slices(self, found: int) -> None:
        """Raises ConfigError when the devices belong to another number of slices."""
        if self.slice != found:
            raise ConfigError(
                f"MeshConfig.slice={self.slice}, but the devices belong to {found} "
                f"{'slice' if found == 1 else 'slices'}; set it to {found}"
            )

    def schedule(self, stages: int) -> Schedule:
        """As many micro-batches as stages, unless the config says more."""
        return Schedule(stages, self.pipeline_micro_batches or stages, self.pipeline_repeats)
