# SPDX-License-Identifier: Apache-2.0
"""The best mesh, micro-batch and remat for a config and a topology.

Arithmetic first: all combinations, in milliseconds.  Then the promising ones are compiled, best
first; each program is kept on disk, so a search that was stopped goes on where it was.
"""

import dataclasses
import itertools
import typing
from collections.abc import Iterator
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.model.config import RematPolicy
from jaxlm.plan.analytic import Estimate, estimate
from jaxlm.plan.answer import Plan, make_plan
from jaxlm.plan.compiled import Progress
from jaxlm.plan.topology import Topology

OWN = "the config as it is"
MARGIN = 1.1  # times the memory: arithmetic may be that much above the compiler's count
MOST_MICRO = 8
MOST_REFUSED = 8  # programs that do not fit: enough to correct every remat policy
MOST_EXPERT = 8  # devices along the expert axis
MOST_TENSOR = 8  # devices along the model axis; beyond, activations cross too many links


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run the same update, and what arithmetic says of it."""

    what: str  # as --set would say it
    config: RunConfig
    estimate: Estimate

    @property
    def middle_s(self) -> float:
        work = self.estimate.work
        return (work.fastest_s + work.slowest_s) / 2


def candidates(config: RunConfig, topology: Topology) -> list[Candidate]:
    """All that divide and may fit, and the config itself in any case; the fastest by arithmetic first."""
    found: dict[tuple[object, ...], Candidate] = {}
    for what, other in _combinations(config, topology):
        try:
            one = Candidate(what, other, estimate(other, topology))
        except ConfigError:
            continue
        if what == OWN or _may_fit(one, topology):
            key = (
                tuple(one.estimate.mesh.values()),
                other.model.remat,
                other.train.num_micro_batches,
            )
            found.setdefault(key, one)
    return sorted(found.values(), key=lambda one: (one.middle_s, one.estimate.memory.total))


def _may_fit(one: Candidate, topology: Topology, corrected: float | None = None) -> bool:
    """By arithmetic, or where the compiler corrected it, by that."""
    needed, capacity = one.estimate.memory.total, topology.chip.hbm_bytes
    return needed <= MARGIN * capacity if corrected is None else needed * corrected <= capacity


def _combinations(config: RunConfig, topology: Topology) -> Iterator[tuple[str, RunConfig]]:
    yield OWN, config
    counts = [2**i for i in range(MOST_MICRO.bit_length())]
    for sizes, remat, count in itertools.product(
        _meshes(config, topology.num_devices), typing.get_args(RematPolicy), counts
    ):
        if config.data.batch_size % count:
            continue
        mesh = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
        yield (
            f"{mesh or 'one device'}, remat {remat}, {count} micro-batches",
            dataclasses.replace(
                config,
                mesh=dataclasses.replace(config.mesh, **sizes),
                model=dataclasses.replace(config.model, remat=remat),
                train=dataclasses.replace(config.train, num_micro_batches=count),
            ),
        )


def _meshes(config: RunConfig, num_devices: int) -> Iterator[dict[str, Any]]:
    """Powers of two along data, fsdp, model and, where there are any, experts; others as they are."""
    now = config.mesh
    kept = now.slice * now.pipeline * max(now.context, 1)
    powers = lambda most: [2**i for i in range(most.bit_length())]
    experts = (
        powers(min(config.model.num_experts, MOST_EXPERT)) if config.model.num_experts else [1]
    )
    if num_devices % kept or now.context < 1:
        return
    for tensor, expert, data in itertools.product(
        powers(MOST_TENSOR), experts, powers(num_devices)
    ):
        used = kept * tensor * expert * data
        if num_devices % used == 0:
            fsdp = num_devices // used
            yield {"data": data, "fsdp": fsdp, "expert": expert, "model": tensor}


def search(
    name: str, config: RunConfig, topology: Topology, most: int, progress: Progress
) -> list[tuple[Candidate, Plan]]:
    """Compiles the `most` most promising that fit, and the config itself; the fastest that fit first.

    One that the compiler refuses is in the answer, but not among the `most`.  Others of its remat
    policy are believed to be as far from arithmetic, and those that then cannot fit are passed over.

    Raises ConfigError when none may fit.
    """
    config.mesh.check_slices(topology.num_slices)
    found = candidates(config, topology)
    if not any(_may_fit(one, topology) for one in found):
        raise ConfigError(
            f"nothing found that may fit {topology.name}: take a larger slice, or a smaller "
            f"DataConfig.batch_size than {config.data.batch_size}"
        )
    plans: list[tuple[Candidate, Plan]] = []
    corrected: dict[str, float] = {}  # by remat: the compiler's count over that of arithmetic
    own = [one for one in found if one.what == OWN]
    for one in [*(one for one in found if one.what != OWN), *own]:
        num_fit = sum(plan.fits for _, plan in plans)
        is_enough = num_fit == most or len(plans) - num_fit == MOST_REFUSED
        may_fit = _may_fit(one, topology, corrected.get(one.config.model.remat))
        if one.what != OWN and (is_enough or not may_fit):
            continue
        inner = lambda label, frac, detail, one=one, num_fit=num_fit: progress(
            "search", num_fit / (most + 1), f"{one.what}: {detail}"
        )
        plan = make_plan(name, one.config, topology, inner)
        plans.append((one, plan))
        if not plan.fits:
            corrected[one.config.model.remat] = plan.memory.total / one.estimate.memory.total
    progress("search", 1.0, f"{len(plans)} compiled of {len(found)}")
    return sorted(plans, key=lambda pair: (not pair[1].fits, middle(pair[1])))


def middle(plan: Plan) -> float:
    """What plans are ordered by: the best estimate, or the nearest to it that there is."""
    return plan.middle_s or plan.step_s[0]


def is_pareto(plan: Plan, others: list[Plan]) -> bool:
    """Whether no other that fits is both faster and smaller."""
    return plan.fits and not any(
        other.fits and middle(other) < middle(plan) and other.memory.total < plan.memory.total
        for other in others
    )


def table(found: list[tuple[Candidate, Plan]]) -> Iterator[str]:
    """One line for each; those marked * are beaten in time and memory by none."""
    plans = [plan for _, plan in found]
    step = "perfect overlap" if any(plan.middle_s is None for plan in plans) else "predicted step"
    yield f"  {step:>15}  {'MFU':>6}  {'memory':>10}  "
    for one, plan in found:
        mark = "*" if is_pareto(plan, plans) else " "
        took = middle(plan)
        fits = "" if plan.fits else "  DOES NOT FIT"
        yield (
            f"{mark} {took * 1e3:>12,.1f} ms  {plan.mfu(took):6.1%}"
            f"  {plan.memory.total / 2**30:>6,.1f} GiB  {one.what}{fits}"
        )
