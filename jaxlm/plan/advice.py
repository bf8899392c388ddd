# SPDX-License-Identifier: Apache-2.0
"""What binds a step, and which changes of the config would help most; all predicted."""

import dataclasses
import typing
from collections.abc import Iterator

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.model.config import RematPolicy
from jaxlm.plan.analytic import Estimate, estimate
from jaxlm.plan.answer import Plan
from jaxlm.plan.chips import HOP_S
from jaxlm.plan.topology import Topology

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
    model, train, mesh = config.model, config.train, config.mesh
    for remat in typing.get_args(RematPolicy):
        if remat != model.remat:
            new = dataclasses.replace(model, remat=remat)
            yield f"ModelConfig.remat = {remat!r}", dataclasses.replace(config, model=new)
    for count in (train.num_micro_batches * 2, train.num_micro_batches // 2):
        if count and config.data.batch_size % count == 0:
            more = dataclasses.replace(train, num_micro_batches=count)
            what = f"TrainConfig.num_micro_batches = {count}"
            yield what, dataclasses.replace(config, train=more)
    sizes = dict(zip(("data", "fsdp", "model"), mesh.shape(topology.num_devices), strict=True))
    for give, take in (("data", "fsdp"), ("fsdp", "data"), ("fsdp", "model"), ("model", "fsdp")):
        if sizes[give] % 2 == 0:
            new_sizes = sizes | {give: sizes[give] // 2, take: sizes[take] * 2}
            what = ", ".join(f"MeshConfig.{axis} = {new_sizes[axis]}" for axis in (give, take))
            yield what, dataclasses.replace(config, mesh=dataclasses.replace(mesh, **new_sizes))


def _tried(plan: Plan) -> list[tuple[str, Estimate]]:
    found = []
    for what, config in neighbours(plan.config, plan.topology):
        try:
            found.append((what, estimate(config, plan.topology)))
        except ConfigError:
            continue
    return found


def _to_fit(plan: Plan) -> list[Change]:
    """By what they cost in time.  Memory is scaled by what the compiler said of this config."""
    now, found = plan.estimate, []
    beyond = plan.memory.total - now.memory.total  # what arithmetic did not see
    for what, other in _tried(plan):
        total = other.memory.total + beyond
        saved = plan.memory.total - total
        slower = other.work.slowest_s / now.work.slowest_s - 1
        if saved > 0:
            fits = total <= plan.capacity
            verdict = "fits" if fits else "still too much"
            effect = f"predicted {total / 2**30:,.1f} GiB, {verdict}; step {slower:+.0%}"
            found.append((not fits, slower if fits else total, Change(what, effect, saved)))
    found.sort(key=lambda one: one[:2])
    return [change for _, _, change in found]


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
    seconds = extra / max(reading.compute_s * plan.topology.chip.peak_flops, 1) * reading.schedule_s
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
