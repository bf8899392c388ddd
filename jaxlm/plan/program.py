# SPDX-License-Identifier: Apache-2.0
"""A compiled train step, read: its work, its traffic, its collectives, its predicted time."""

import collections
import dataclasses
import functools
import math

from jaxlm.model.config import ModelConfig
from jaxlm.plan.collectives import Collective, collective_of, mesh_axes
from jaxlm.plan.hlo import Computation, Module, Op, parse
from jaxlm.plan.kernels import kernel_call
from jaxlm.plan.network import Network
from jaxlm.plan.products import product_flops
from jaxlm.plan.timeline import Cost, step_time
from jaxlm.plan.traffic import Traffic

# Share of the peak that XLA's products reach by their final schedule (a bf16 4096^3, bundles counted
# as in bench/schedule.py).  The compiler's own `estimated_cycles` are up to twice that schedule where
# operands come from HBM: they are kept as `cost_model_s` and not used.
PRODUCT_SHARE = {"v5e": 0.95, "v5p": 0.93, "v6e": 0.89, "tpu7x": 0.90}
ON_CHIP = 10.0  # how many times faster than HBM an elementwise operation moves what lies in VMEM
NUM_SLOWEST = 12  # operations listed
UNKNOWN_RATE = 0.5  # of the peak, of a kernel that the table of rates does not have


@dataclasses.dataclass(frozen=True)
class CollectiveSum:
    """All collectives of one kind over one set of mesh axes."""

    kind: str
    axes: tuple[str, ...]
    num_text: int  # in the program's text
    num_run: float  # per step
    wire_bytes: float  # per step and device
    async_bytes: float  # the part of them that goes beside other work
    seconds: float  # if each had the links to itself


@dataclasses.dataclass(frozen=True)
class KernelSum:
    """All calls of one Pallas kernel."""

    kernel: str
    num_run: float
    flops: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a step does on one device.  Seconds are predicted."""

    product_flops: float  # of XLA's own matrix products
    product_flops_once: float  # the same with each loop's body counted once, as cost_analysis does
    kernels: tuple[KernelSum, ...]
    hbm_bytes: float
    host_bytes: float
    collectives: tuple[CollectiveSum, ...]
    compute_s: float  # all products and kernels at the chip's peak
    schedule_s: float  # the same at the rates of their schedules
    memory_s: float
    network_s: float
    best_s: float
    exposed_s: float  # of best_s: nothing but the network
    stalled_s: float  # of best_s: waiting for copies
    cost_model_s: float  # the compiler's own estimates of XLA's operations, added up
    slowest: tuple[tuple[str, float], ...]  # operations and their seconds per step
    unknown_loops: tuple[str, ...]
    seconds_by_kind: dict[str, float]  # products, kernels, elementwise, collectives

    @property
    def flops(self) -> float:
        """Executed: products and kernels."""
        return self.product_flops + sum(k.flops or 0.0 for k in self.kernels)

    @property
    def wire_bytes(self) -> float:
        return sum(c.wire_bytes for c in self.collectives)

    @property
    def exposed_bytes(self) -> float:
        """In collectives that are not asynchronous."""
        return sum(c.wire_bytes - c.async_bytes for c in self.collectives)

    @property
    def fastest_s(self) -> float:
        """Perfect overlap: the busiest of matrix units, memory and network, at its peak."""
        return max(self.compute_s, self.memory_s, self.network_s)

    @property
    def slowest_s(self) -> float:
        """No overlap at all."""
        return max(self.schedule_s + self.memory_s + self.network_s, self.best_s)


def read(text: str, model: ModelConfig, mesh: dict[str, int], network: Network) -> Reading:
    """Reads the text of a program that was compiled for `mesh`, named sizes, on `network`."""
    return _Reader(parse(text), model, mesh, network).reading()


class _Reader:
    def __init__(
        self, module: Module, model: ModelConfig, mesh: dict[str, int], network: Network
    ) -> None:
        self.module, self.model, self.mesh, self.network = module, model, mesh, network
        self.chip = network.topology.chip
        self.traffic = Traffic(module)
        self.cost = functools.cache(self._cost)

    def _cost(self, name: str, op: Op) -> Cost:
        """Of one operation, one turn."""
        computation = self.module.computations[name]
        found = collective_of(self.module, computation, op)
        if found is not None:
            return Cost(network=self.network.seconds(found), is_async=found.is_async)
        memory = self.traffic.of(computation, op) / self.chip.hbm_bandwidth
        if op.kind in ("copy-start", "slice-start"):
            return Cost(memory=memory, is_async=True)
        kernel = kernel_call(computation, op, self.model, self.chip.name)
        if kernel is not None:
            rate = kernel.rate or UNKNOWN_RATE
            return Cost((kernel.flops or 0.0) / (rate * self.chip.peak_flops), memory)
        flops = product_flops(self.module, computation, op)
        if flops:
            return Cost(flops / (PRODUCT_SHARE[self.chip.name] * self.chip.peak_flops), memory)
        on_chip = sum(a.num_bytes for a in op.arrays if a.space == 1)
        return Cost(
            on_chip / ON_CHIP / self.chip.hbm_bandwidth if memory or op.cycles else 0.0, memory
        )

    def reading(self) -> Reading:
        module = self.module
        once, total, schedule, memory, hbm, host, cycles = (0.0,) * 7
        kernels: dict[str, tuple[float, ...]] = collections.defaultdict(lambda: (0.0, 0.0, 0.0))
        known: dict[str, bool] = {}
        sums: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        seconds: dict[str, float] = collections.defaultdict(float)
        kinds: dict[str, float] = collections.defaultdict(float)
        for name, times in module.times.items():
            computation = module.computations[name]
            for op in computation.ops:
                if module.called_in_turn(op):
                    continue
                cost = self.cost(name, op)
                flops = product_flops(module, computation, op)
                cycles += (op.cycles or 0.0) * times
                once, total = once + flops, total + flops * times
                hbm += self.traffic.of(computation, op) * times
                host += self.traffic.host_bytes(op) * times
                memory += cost.memory * times
                seconds[_label(op)] += max(cost.busy, cost.network) * times
                call = kernel_call(computation, op, self.model, self.chip.name)
                kinds[self._kind(op, flops, call is not None, cost)] += (
                    max(cost.busy, cost.network) * times
                )
                if call is not None:
                    add = (times, (call.flops or 0.0) * times, cost.busy * times)
                    kernels[call.kernel] = tuple(
                        a + b for a, b in zip(kernels[call.kernel], add, strict=True)
                    )
                    known[call.kernel] = call.flops is not None
                if call is not None or flops:
                    schedule += cost.work * times
                self._collect(sums, computation, op, cost, times)
        clock = step_time(module, self.cost)
        sums_found = tuple(
            CollectiveSum(kind, axes, int(n[0]), n[1], n[2], n[3], n[4])
            for (kind, axes), n in sorted(sums.items())
        )
        kernel_flops = sum(k[1] for k in kernels.values())
        return Reading(
            product_flops=total,
            product_flops_once=once,
            kernels=tuple(
                KernelSum(name, k[0], k[1] if known[name] else None, k[2])
                for name, k in sorted(kernels.items())
            ),
            hbm_bytes=hbm,
            host_bytes=host,
            collectives=sums_found,
            compute_s=(total + kernel_flops) / self.chip.peak_flops,
            schedule_s=schedule,
            memory_s=memory,
            network_s=sum(c.seconds for c in sums_found),
            best_s=clock.now,
            exposed_s=clock.waited,
            stalled_s=clock.stalled,
            cost_model_s=cycles / (self.chip.clock_hz or math.inf),
            slowest=tuple(sorted(seconds.items(), key=lambda one: -one[1])[:NUM_SLOWEST]),
            unknown_loops=module.unknown_loops,
            seconds_by_kind=dict(kinds),
        )

    def _collect(
        self,
        sums: dict[tuple[str, tuple[str, ...]], list[float]],
        computation: Computation,
        op: Op,
        cost: Cost,
        times: float,
    ) -> None:
        found: Collective | None = collective_of(self.module, computation, op)
        if found is None:
            return
        key = found.kind, mesh_axes(found.group, self.mesh)
        one = sums.setdefault(key, [0.0] * 5)
        one[0] += 1.0
        one[1] += times
        one[2] += found.wire_bytes * times
        one[3] += found.wire_bytes * times if found.is_async else 0.0
        one[4] += cost.network * times

    def _kind(self, op: Op, flops: float, is_kernel: bool, cost: Cost) -> str:
        if cost.network:
            return "collectives"
        if is_kernel:
            return "kernels"
        if cost.is_async:
            return "copies beside work"
        return "matrix products" if flops else "elementwise and copies"


def _label(op: Op) -> str:
    """An operation's name and where in the model it comes from."""
    path = op.text("op_name") or ""
    return f"{op.name} {path[-70:]}"
