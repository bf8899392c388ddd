# SPDX-License-Identifier: Apache-2.0
"""A compiled train step, read: its work, its traffic, its collectives, its predicted time."""

import dataclasses
from collections.abc import Callable

from jaxlm.model.config import ModelConfig
from jaxlm.plan.collectives import Collective, collective_of, mesh_axes
from jaxlm.plan.hlo import HBM, HOST, Computation, Module, Op, parse
from jaxlm.plan.kernels import KernelCall, kernel_call
from jaxlm.plan.network import Network
from jaxlm.plan.products import product_flops, product_work
from jaxlm.plan.timeline import Cost, step_time
from jaxlm.plan.traffic import COPIES, Traffic, is_free

# Share of the peak that XLA's products reach by their final schedule (a bf16 4096^3, bundles counted
# as in bench/schedule.py).
PRODUCT_SHARE = {"v5e": 0.95, "v5p": 0.93, "v6e": 0.89, "tpu7x": 0.90}
ON_CHIP = 10.0  # how many times faster than HBM an elementwise operation moves what lies in VMEM
NUM_SLOWEST = 12  # operations listed
UNKNOWN_RATE = 0.5  # of the peak, of a kernel that the table of rates does not have
CallOf = Callable[[Computation, Op], KernelCall | None]


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
    compute_s: float  # all products, in all their passes, and kernels at the chip's peak
    schedule_s: float  # the same at the rates of their schedules
    memory_s: float
    network_s: float
    far_s: float  # of network_s: from slice to slice, over links of its own
    best_s: float  # at least the fastest
    exposed_s: float  # of best_s: nothing but the network
    stalled_s: float  # of best_s: waiting for copies
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
        return max(self.compute_s, self.memory_s, self.network_s - self.far_s, self.far_s)

    @property
    def slowest_s(self) -> float:
        """No overlap at all."""
        return max(self.schedule_s + self.memory_s + self.network_s, self.best_s)


def read(text: str, model: ModelConfig, mesh: dict[str, int], network: Network) -> Reading:
    """Reads the text of a program that was compiled for `mesh`, named sizes, on `network`."""
    chip, sharing = network.topology.chip.name, mesh.get("expert", 1)
    call_of = lambda within, op: kernel_call(within, op, model, chip, sharing)
    return read_with(call_of, text, mesh, network)


def read_with(call_of: CallOf, text: str, mesh: dict[str, int], network: Network) -> Reading:
    """`read`, of a program whose kernels `call_of` knows: also another project's."""
    return _Reader(parse(text), call_of, mesh, network).reading()


def read_collectives(
    text: str, mesh: dict[str, int], network: Network
) -> tuple[CollectiveSum, ...]:
    """The collectives alone, of any program; their seconds are those of the links at full speed."""
    module = parse(text)
    found = [
        (collective, module.times[name], network.seconds(collective))
        for name in module.times
        for op in module.computations[name].ops
        if (collective := collective_of(module, module.computations[name], op)) is not None
    ]
    return _collective_sums(found, mesh)


def _collective_sums(
    found: list[tuple[Collective, float, float]], mesh: dict[str, int]
) -> tuple[CollectiveSum, ...]:
    """By kind and mesh axes, of (collective, how often it runs, seconds of one)."""
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[Collective, float, float]]] = {}
    for one in found:
        groups.setdefault((one[0].kind, mesh_axes(one[0].group, mesh)), []).append(one)
    return tuple(
        CollectiveSum(
            kind=kind,
            axes=axes,
            num_text=len(group),
            num_run=sum(times for _, times, _ in group),
            wire_bytes=sum(c.wire_bytes * times for c, times, _ in group),
            async_bytes=sum(c.wire_bytes * times for c, times, _ in group if c.is_async),
            seconds=sum(seconds * times for _, times, seconds in group),
        )
        for (kind, axes), group in sorted(groups.items())
    )


@dataclasses.dataclass(frozen=True)
class _Row:
    """One scheduled operation: how often it runs, and what one turn does."""

    op: Op
    times: float
    cost: Cost
    flops: float  # of XLA's products
    work: float  # the same times their passes
    call: KernelCall | None
    collective: Collective | None
    hbm_bytes: float
    host_bytes: float

    @property
    def seconds(self) -> float:
        """Of all turns, if nothing ran beside it."""
        return max(self.cost.busy, self.cost.network) * self.times

    @property
    def kind(self) -> str:
        if self.collective is not None:
            return "collectives"
        if self.call is not None:
            return "kernels"
        if self.cost.is_async:
            return "copies beside work"
        return "matrix products" if self.flops else "elementwise and copies"

    @property
    def label(self) -> str:
        """The operation's name and where in the model it comes from."""
        return f"{self.op.name} {(self.op.text('op_name') or '')[-70:]}"


class _Reader:
    def __init__(
        self, module: Module, call_of: CallOf, mesh: dict[str, int], network: Network
    ) -> None:
        self.module, self.call_of, self.mesh, self.network = module, call_of, mesh, network
        self.chip = network.topology.chip
        self.traffic = Traffic(module)

    def row(self, name: str, op: Op) -> _Row:
        """An operation of the computation `name`."""
        computation = self.module.computations[name]
        found = collective_of(self.module, computation, op)
        call = self.call_of(computation, op)
        flops = product_flops(self.module, computation, op)
        work = product_work(self.module, computation, op) if flops else 0.0
        moved = self.traffic.of(computation, op)
        host = self.traffic.host_bytes(computation, op)
        cost = self._cost(op, found, call, work, moved, host)
        times = self.module.times[name]
        return _Row(op, times, cost, flops, work, call, found, moved, host)

    def _cost(
        self,
        op: Op,
        found: Collective | None,
        call: KernelCall | None,
        product: float,
        moved: float,
        host: float,
    ) -> Cost:
        chip = self.chip
        memory = moved / chip.hbm_bandwidth
        work = product / (PRODUCT_SHARE[chip.name] * chip.peak_flops)
        if found is not None:  # what it moves itself is part of its time
            memory = memory if product else 0.0
            network = self.network.seconds(found)
            return Cost(
                work=work, memory=memory, network=network, is_async=found.is_async,
                is_far=found.is_far,
            )  # fmt: skip
        if op.kind in COPIES:
            return Cost(memory=memory, host=host / chip.host_bandwidth, is_async=True)
        if call is not None:
            work = (call.flops or 0.0) / ((call.rate or UNKNOWN_RATE) * chip.peak_flops)
        elif not product and not is_free(op):
            on_chip = sum(a.num_bytes for a in op.arrays if a.space not in (HBM, HOST))
            work = on_chip / ON_CHIP / chip.hbm_bandwidth
        return Cost(work=work, memory=memory)

    def reading(self) -> Reading:
        module = self.module
        rows = {
            (name, op.name): self.row(name, op)
            for name in module.times
            for op in module.computations[name].ops
            if not module.called_in_turn(op)
        }
        clock = step_time(module, lambda name, op: rows[name, op.name].cost)
        every = list(rows.values())
        total = lambda of: sum(of(row) * row.times for row in every)
        flops = total(lambda row: row.flops)
        kernels = _kernel_sums(every)
        sent = [(r.collective, r.times, r.cost.network) for r in every if r.collective is not None]
        collectives = _collective_sums(sent, self.mesh)
        by_label, by_kind = _added(every, lambda r: r.label), _added(every, lambda r: r.kind)
        works = lambda row: row.cost.work if row.flops or row.call else 0.0
        work = total(lambda row: row.work) + sum(k.flops or 0.0 for k in kernels)
        compute_s = work / self.chip.peak_flops
        memory_s = total(lambda row: row.hbm_bytes) / self.chip.hbm_bandwidth
        network_s = sum(c.seconds for c in collectives)
        far_s = sum(seconds * times for c, times, seconds in sent if c.is_far)
        return Reading(
            product_flops=flops,
            product_flops_once=sum(row.flops for row in every),
            kernels=kernels,
            hbm_bytes=total(lambda row: row.hbm_bytes),
            host_bytes=total(lambda row: row.host_bytes),
            collectives=collectives,
            compute_s=compute_s,
            schedule_s=total(works),
            memory_s=memory_s,
            network_s=network_s,
            far_s=far_s,
            # copies that run beside the work take none of its memory bandwidth, so the clock may say less
            best_s=max(clock.now, compute_s, memory_s, network_s - far_s, far_s),
            exposed_s=clock.waited,
            stalled_s=clock.stalled,
            slowest=tuple(sorted(by_label.items(), key=lambda one: -one[1])[:NUM_SLOWEST]),
            unknown_loops=module.unknown_loops,
            seconds_by_kind=by_kind,
        )


def _kernel_sums(rows: list[_Row]) -> tuple[KernelSum, ...]:
    groups: dict[str, list[tuple[_Row, KernelCall]]] = {}
    for row in rows:
        if row.call is not None:
            groups.setdefault(row.call.kernel, []).append((row, row.call))
    return tuple(
        KernelSum(
            kernel=kernel,
            num_run=sum(row.times for row, _ in group),
            flops=sum((call.flops or 0.0) * row.times for row, call in group)
            if all(call.flops is not None for _, call in group)
            else None,
            seconds=sum(row.seconds for row, _ in group),
        )
        for kernel, group in sorted(groups.items())
    )


def _added(rows: list[_Row], key: Callable[[_Row], str]) -> dict[str, float]:
    """Seconds of all turns by a property of the operations."""
    found: dict[str, float] = {}
    for row in rows:
        found[key(row)] = found.get(key(row), 0.0) + row.seconds
    return found
