# SPDX-License-Identifier: Apache-2.0
"""How long a collective takes on the links that its group can use.

A group that spans whole sides of the torus uses the links of each in both directions; one that
spans a part of a side has no way round.  Latency: one hop per step of a ring along each side.
Between slices every device has its share of the data-centre network; latency is not counted.
"""

import dataclasses

from jaxlm.plan.chips import HOP_S
from jaxlm.plan.collectives import Collective
from jaxlm.plan.topology import Topology

Coords = tuple[tuple[int, ...], ...]  # of every partition: its chip's place, then core on the chip


@dataclasses.dataclass(frozen=True)
class Network:
    """Where each partition of a program lies."""

    topology: Topology
    coords: Coords  # () for GPUs of one node: every pair has the same link

    def sides(self, group: tuple[int, ...]) -> tuple[int, ...]:
        """How many places a group takes along each axis of the torus; () as a group means all."""
        where = [self.coords[p] for p in group] if group else list(self.coords)
        return tuple(len({w[axis] for w in where}) for axis in range(len(self.topology.shape)))

    def bandwidth(self, group: tuple[int, ...]) -> float:
        """Bytes/s that a device sends to its group."""
        chip = self.topology.chip
        if not self.coords:
            return chip.link_bandwidth
        total = 0.0
        for axis, side in enumerate(self.sides(group)):
            is_whole = side == self.topology.shape[axis]
            if side > 1:
                total += self.topology.axis_bandwidth(axis) if is_whole else chip.link_bandwidth
        return total or chip.link_bandwidth * 2 * len(self.topology.shape)  # within one chip

    def seconds(self, collective: Collective) -> float:
        """From the first byte to the last."""
        if not collective.wire_bytes:
            return 0.0
        if collective.is_far:
            return collective.wire_bytes / self.topology.chip.slice_bandwidth
        steps = 1 if not self.coords else sum(side - 1 for side in self.sides(collective.group))
        rounds = 2 if collective.kind == "all-reduce" else 1
        if collective.kind == "collective-permute":
            steps = 1
        latency = HOP_S * rounds * max(steps, 1)
        return collective.wire_bytes / self.bandwidth(collective.group) + latency
