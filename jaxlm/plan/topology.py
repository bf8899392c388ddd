# SPDX-License-Identifier: Apache-2.0
"""Names of slices, `v6e:16x16`, `v6e:16x16:2` (two of them) or `h100:8`, to their devices.

Standard library only.
"""

import dataclasses
import itertools
import math
import re

from jaxlm.core.errors import ConfigError
from jaxlm.plan.chips import CHIPS, Chip

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # v5e and v6e
SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # v5p and tpu7x; beyond, sides of 4, 8, 12 ...
GPU_COUNTS = (1, 2, 4, 8)  # of one node
MOST_SLICES = 64  # joined by the data-centre network
LISTED_CHIPS = 4096  # longer lists help nobody; larger slices are accepted


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips in a torus, or in several (or GPUs in a node)."""

    chip: Chip
    shape: tuple[int, ...]  # chips along each axis, of one slice
    num_slices: int = 1

    @property
    def name(self) -> str:
        slices = f":{self.num_slices}" if self.num_slices > 1 else ""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}{slices}"

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape) * self.num_slices

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices_per_chip

    def axis_bandwidth(self, axis: int) -> float:
        """Bytes/s that a device sends along one axis of the torus: both ways round where it closes.

        A side closes where the pod's does: of 16 (v5e, v6e), or any multiple of 4 (v5p, tpu7x).
        """
        side = self.shape[axis]
        is_ring = side == 16 if len(self.shape) == 2 else side % 4 == 0
        return self.chip.link_bandwidth * (2 if is_ring else 1) if side > 1 else 0.0


def valid_shapes(chip: Chip) -> list[str]:
    """The slices of a chip that Cloud TPU rents out, or GPUs of one node, smallest first."""
    if not chip.is_tpu:
        return [str(n) for n in GPU_COUNTS]
    if len(chip.torus) == 2:
        return list(FLAT)
    sides = [range(4, longest + 1, 4) for longest in chip.torus]
    cubes = [s for s in itertools.product(*sides) if list(s) == sorted(s)]
    cubes = [s for s in cubes if s[2] <= 2 * s[1] or s[2] <= 12]
    cubes.sort(key=lambda s: (math.prod(s), s))
    return [*SMALL_CUBES, *("x".join(map(str, s)) for s in cubes)]


def parse_topology(text: str) -> Topology:
    """Raises ConfigError, with what there is, for a chip or a slice that there is not."""
    name, _, rest = text.partition(":")
    shape, colon, slices = rest.partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        raise ConfigError(
            f"--topology: unknown chip in {text!r}; chips: {', '.join(CHIPS)}; write CHIP:SHAPE, "
            "such as v6e:16x16, v5p:4x4x4 or h100:8"
        )
    allowed = valid_shapes(chip)
    if shape not in allowed or not re.fullmatch(r"\d+(x\d+)*", shape):
        short = [s for s in allowed if math.prod(map(int, s.split("x"))) <= LISTED_CHIPS]
        more = " and larger ones" if len(short) < len(allowed) else ""
        raise ConfigError(
            f"--topology: {name} has no slice {shape!r}; slices: {', '.join(short)}{more}"
        )
    if colon and not (chip.is_tpu and slices.isdecimal() and 1 <= int(slices) <= MOST_SLICES):
        raise ConfigError(
            f"--topology: the last part of {text!r} is the number of slices: 1 to {MOST_SLICES}, of "
            f"TPUs alone, such as {'v6e:16x16' if not chip.is_tpu else f'{name}:{shape}'}:2"
        )
    return Topology(chip, tuple(int(n) for n in shape.split("x")), int(slices or 1))
