# SPDX-License-Identifier: Apache-2.0
"""What binds a step, and which changes of the config would help most; all predicted."""

import dataclasses
import itertools
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.model.config import RematPolicy
from jaxlm.plan.analytic import Estimate, estimate
from jaxlm.plan.answer import Plan
from jaxlm.plan.chips import HOP_S
from jaxlm.plan.topology import Topology, parse_topology, valid_shapes

MOVES = (  # a factor of two from one axis of the mesh to another
    ("data", "fsdp"), ("fsdp", "data"), ("fsdp", "model"), ("model", "fsdp"), ("fsdp", "context"),
    ("context", "fsdp"), ("fsdp", "expert"), ("expert", "fsdp"),
)  # fmt: skip
NUM_CHANGES = 3
LEAST_GAIN = 0.01  # of the step; smaller ones are noise of a prediction


@dataclasses.dataclass(frozen=True)
class Change:
    """Fields to set, and what it would bring."""

    what: str
    effect: str
    gain: float  # share of the step's time, or of the missing memory


def binds(plan: Plan) -> str:
    """What takes the step's time, in words."""
    if not plan.fits:
        return "memory capacity"
    reading = plan.reading
    if reading is None:
        work, chip = plan.estimate.work, plan.topology.chip
        parts = {
            "compute": work.executed_flops / chip.peak_flops,
            "memory": work.hbm_bytes / chip.hbm_bandwidth,
        }
        name = max(parts, key=parts.__getitem__)
        return name if parts[name] >= 0.99 * work.fastest_s else "network"
    best = reading.best_s
    parts = {
        "matrix products": reading.seconds_by_kind.get("matrix products", 0.0),
        "kernels": reading.seconds_by_kind.get("kernels", 0.0),
        "memory (elementwise work and copies)": reading.seconds_by_kind.get(
            "elementwise and copies", 0.0
        )
        + reading.stalled_s,
        "network (exposed)": reading.exposed_s,
    }
    hops = sum(c.num_run for c in reading.collectives) * HOP_S
    if hops > 0.5 * reading.exposed_s > 0.1 * best:
        parts["latency of small collectives"] = parts.pop("network (exposed)")
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(
        f"{name} {seconds / best:.0%}" for name, seconds in ordered if seconds > 0.02 * best
    )


def changes(plan: Plan) -> list[Change]:
    """The best few.  If it does not fit, those that would make it fit, the cheapest first."""
    if not plan.fits:
        return _to_fit(plan)[:NUM_CHANGES]
    found = [*_from_program(plan), *_faster(plan)]
    found.sort(key=lambda change: -change.gain)
    return [change for change in found if change.gain >= LEAST_GAIN][:NUM_CHANGES]


def neighbours(config: RunConfig, topology: Topology) -> Iterator[tuple[str, RunConfig]]:
    """Configs that compute the same update in another way: remat, micro-batches, mesh."""
    for other in _neighbours(config, topology):
        yield ", ".join(_settings(config, other, topology)), other


def _neighbours(config: RunConfig, topology: Topology) -> Iterator[RunConfig]:
    model, train, mesh = config.model, config.train, config.mesh
    for remat in typing.get_args(RematPolicy):
        if remat != model.remat:
            yield dataclasses.replace(config, model=dataclasses.replace(model, remat=remat))
    count = train.num_micro_batches // 2 or 2
    while config.data.batch_size % count == 0:
        if count != train.num_micro_batches:
            more = dataclasses.replace(train, num_micro_batches=count)
            yield dataclasses.replace(config, train=more)
        count *= 2
    sizes = mesh.shape(topology.num_devices)
    moves = [move for move in MOVES if model.num_experts or "expert" not in move]
    for give, take in moves:
        if sizes[give] % 2 == 0:
            new_sizes: dict[str, Any] = sizes | {give: sizes[give] // 2, take: sizes[take] * 2}
            yield dataclasses.replace(config, mesh=dataclasses.replace(mesh, **new_sizes))


def _settings(config: RunConfig, other: RunConfig, topology: Topology) -> list[str]:
    """What to set for the other, as --set would say it."""
    sizes = config.mesh.shape(topology.num_devices)
    new_sizes = other.mesh.shape(topology.num_devices)
    settings: dict[str, Any] = {
        f"MeshConfig.{axis}": size for axis, size in new_sizes.items() if size != sizes[axis]
    }
    if other.model.remat != config.model.remat:
        settings["ModelConfig.remat"] = repr(other.model.remat)
    if (count := other.train.num_micro_batches) != config.train.num_micro_batches:
        settings["TrainConfig.num_micro_batches"] = count
    return [f"{name} = {value}" for name, value in settings.items()]


def _estimated(
    found: Iterator[tuple[str, RunConfig]], topology: Topology
) -> Iterator[tuple[str, RunConfig, Estimate]]:
    """Those that divide over the topology."""
    for what, config in found:
        try:
            yield what, config, estimate(config, topology)
        except ConfigError:
            continue


def _tried(plan: Plan) -> list[tuple[str, Estimate]]:
    singles = _estimated(neighbours(plan.config, plan.topology), plan.topology)
    return [(what, found) for what, _, found in singles]


def _pairs(config: RunConfig, topology: Topology) -> Iterator[tuple[str, RunConfig]]:
    """Single changes first, then two at a time; each way once."""
    singles = list(_neighbours(config, topology))
    doubles = (both for changed in singles for both in _neighbours(changed, topology))
    seen = {""}  # two changes may lead back
    for other in itertools.chain(singles, doubles):
        what = ", ".join(_settings(config, other, topology))
        if what not in seen:
            seen.add(what)
            yield what, other


def _to_fit(plan: Plan) -> list[Change]:
    """By what they cost in time: changes of the config, and the smallest slice that holds it.

    Memory that arithmetic did not see, because the compiler counted more, is taken to stay.
    """
    now, found = plan.estimate, []
    beyond = plan.memory.total - now.memory.total
    for what, _, other in _estimated(_pairs(plan.config, plan.topology), plan.topology):
        total = other.memory.total + beyond
        slower = other.work.slowest_s / now.work.slowest_s - 1
        if total <= plan.capacity and total < plan.memory.total:
            effect = f"predicted {total / 2**30:,.1f} GiB, fits; step {slower:+.0%}"
            key = (round(slower, 2), what.count(" = "), total)
            found.append((key, Change(what, effect, plan.memory.total - total)))
    found.sort(key=lambda one: one[0])
    larger = _larger_slice(plan, beyond)
    least = _without_more(change for _, change in found)
    return [*itertools.islice(least, NUM_CHANGES - len(larger)), *larger] or [
        Change(
            "nothing found that may fit: no two changes of remat, micro-batches and mesh, and no "
            f"larger slice of {plan.topology.chip.name}",
            "take a smaller model, DataConfig.seq_len or DataConfig.batch_size, or another chip",
            0.0,
        )
    ]


def _without_more(found: Iterable[Change]) -> Iterator[Change]:
    """Those that do not set what an earlier, cheaper one sets, and more."""
    before: list[set[str]] = []
    for change in found:
        settings = set(change.what.split(", "))
        if not any(fewer <= settings for fewer in before):
            before.append(settings)
            yield change


def _larger_slice(plan: Plan, beyond: float) -> list[Change]:
    """The smallest slice of the same chip on which the config fits as it is; none if none does."""
    chip = plan.topology.chip
    for shape in valid_shapes(chip):
        topology = parse_topology(f"{chip.name}:{shape}")
        topology = dataclasses.replace(topology, num_slices=plan.topology.num_slices)
        if topology.num_devices <= plan.topology.num_devices:
            continue
        for _, _, other in _estimated(iter([("", plan.config)]), topology):
            total = other.memory.total + beyond
            if total <= plan.capacity:
                effect = f"predicted {total / 2**30:,.1f} GiB, fits"
                what = f"--topology {topology.name}, {topology.num_devices:,} devices"
                return [Change(what, effect, plan.memory.total - total)]
    return []


def _faster(plan: Plan) -> Iterator[Change]:
    """Neighbours that the arithmetic holds for faster, and that it lets fit."""
    now = plan.estimate
    beyond = max(0.0, plan.memory.total - now.memory.total)
    for what, other in _tried(plan):
        gain = 1 - other.work.slowest_s / now.work.slowest_s
        total = other.memory.total + beyond
        if gain > 0 and total <= plan.capacity:
            memory = (
                f"memory {now.memory.total / 2**30:,.1f} -> {other.memory.total / 2**30:,.1f} GiB"
            )
            yield Change(what, f"step {-gain:+.1%} by arithmetic; {memory}", gain)


def _from_program(plan: Plan) -> Iterator[Change]:
    """What the program itself shows."""
    reading = plan.reading
    if reading is None:
        return
    best = reading.best_s
    yield Change(
        "hide the exposed collectives behind work (see docs/plan.md, compiler flags)",
        f"step {-reading.exposed_s / best:+.1%} at most: {reading.exposed_s * 1e3:,.0f} ms wait for"
        " the network",
        reading.exposed_s / best,
    )
    extra = plan.executed_flops - plan.model_flops
    seconds = extra / max(reading.flops, 1) * reading.schedule_s
    if plan.config.model.remat != "none":
        yield Change(
            "recompute less (ModelConfig.remat) where memory allows",
            f"step {-seconds / best:+.1%} at most: {extra / 1e12:,.0f} TF are computed again",
            0.5 * seconds / best,
        )
    moved = reading.seconds_by_kind.get("elementwise and copies", 0.0)
    if reading.slowest and moved > 0.2 * best:
        yield Change(
            "move less memory between the products; see the slowest operations (--json)",
            f"elementwise work and copies take {moved / best:.0%} of the step",
            0.3 * moved / best,
        )
