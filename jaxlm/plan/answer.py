# SPDX-License-Identifier: Apache-2.0
"""What a plan says: the same numbers from the analytic and from the compiled answer.

Model FLOPs are three times the matrix products of one forward pass, causal attention counted over
the pairs that the mask shows (model/accounting.py); recomputed work is not among them.
"""

import dataclasses
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.core.canonical import to_jsonable
from jaxlm.model.accounting import num_params
from jaxlm.plan.analytic import Estimate, Memory, estimate
from jaxlm.plan.compiled import Compiled, DoesNotFitError, Progress, compile_step, save_step
from jaxlm.plan.network import Network
from jaxlm.plan.program import CollectiveSum, Reading, read, read_collectives
from jaxlm.plan.topology import Topology

FORMULA = (
    "3 x the matrix products of one forward pass; attention over the pairs that its mask shows"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One config on one topology.  All times are predicted."""

    name: str  # of the config
    topology: Topology
    config: RunConfig
    estimate: Estimate
    memory: Memory
    capacity: float  # bytes of one device
    reading: Reading | None  # None: analytic only, or it does not fit, or a GPU
    facts: dict[str, Any] | None  # of the compiling process
    collectives: tuple[CollectiveSum, ...] = ()  # of the program, also of a GPU's
    too_much: str | None = None  # what the compiler said when it did not fit

    @property
    def is_compiled(self) -> bool:
        return self.facts is not None

    @property
    def is_refused(self) -> bool:
        """Whether the compiler did not make it fit."""
        return self.too_much is not None

    @property
    def answer(self) -> str:
        """Who answered: "compiled", "refused" (by the compiler, for memory) or "analytic"."""
        return "refused" if self.is_refused else "compiled" if self.is_compiled else "analytic"

    @property
    def excess(self) -> float | None:
        """Bytes of a device that it needs too much; None if it fits or nobody says how many.

        Of a program that the compiler refused, by the compiler's count.
        """
        found = self.memory.total - self.capacity
        return None if self.fits or found <= 0 else found

    @property
    def source(self) -> str:
        """Where the numbers come from."""
        if self.is_refused:
            return "the compiler refused it; its work by arithmetic"
        if self.facts is None:
            return "analytic, by arithmetic"
        return "the compiler's schedule" if self.topology.chip.is_tpu else "compiled"

    @property
    def fits(self) -> bool:
        return not self.is_refused and self.memory.total <= self.capacity

    @property
    def tokens_per_device(self) -> float:
        return self.estimate.tokens_per_step / self.topology.num_devices

    @property
    def model_flops(self) -> float:
        """Per device and step."""
        return self.estimate.work.model_flops

    @property
    def executed_flops(self) -> float:
        return self.reading.flops if self.reading else self.estimate.work.executed_flops

    @property
    def useful_frac(self) -> float:
        """Model FLOPs over executed ones: MFU at perfect overlap and full speed."""
        return self.model_flops / self.executed_flops

    @property
    def step_s(self) -> tuple[float, float | None, float | None]:
        """(perfect overlap, best estimate, no overlap).

        No best estimate without a program, and of GPUs nothing but the bound: what their programs
        take cannot be read from them here.
        """
        if self.reading is not None:
            return self.reading.fastest_s, self.reading.best_s, self.reading.slowest_s
        work = self.estimate.work
        return work.fastest_s, None, work.slowest_s if self.topology.chip.is_tpu else None

    @property
    def middle_s(self) -> float | None:
        """What days and costs are counted with: the best estimate, else the slowest."""
        _, best, slowest = self.step_s
        return best or slowest

    def mfu(self, step_s: float) -> float:
        return self.model_flops / step_s / self.topology.chip.peak_flops

    def tokens_per_s(self, step_s: float) -> float:
        """Of all devices together."""
        return self.estimate.tokens_per_step / step_s

    @property
    def total_tokens(self) -> int:
        return self.estimate.tokens_per_step * self.config.train.num_steps

    @property
    def days(self) -> float | None:
        middle = self.middle_s
        return None if middle is None else middle * self.config.train.num_steps / 86400

    def chip_hours(self, step_s: float) -> float:
        """Of the whole run."""
        return step_s * self.config.train.num_steps * self.topology.num_chips / 3600


def make_plan(
    name: str,
    config: RunConfig,
    topology: Topology,
    progress: Progress | None,
    save: Path | None = None,
) -> Plan:
    """progress None: the analytic answer alone.  save: where the executable is to be written.

    What is planned is an update without probes, as nineteen of twenty are (TrainConfig.probe_every);
    the executable has them.

    Raises ConfigError for what cannot be planned.
    """
    first = estimate(config, topology)
    plan = Plan(name, topology, config, first, first.memory, topology.chip.hbm_bytes, None, None)
    if progress is None:
        return plan
    try:
        compiled = compile_step(without_probes(config), topology, progress)
        if save is not None:
            save_step(config, topology, progress, save)
    except DoesNotFitError as error:
        return dataclasses.replace(
            plan, too_much=str(error), memory=refused_memory(first.memory, error.needed)
        )
    mesh, network = compiled.facts["mesh"], _network(topology, compiled)
    reading, sent = None, read_collectives(compiled.text, mesh, network)
    if topology.chip.is_tpu:
        reading = read(compiled.text, config.model, mesh, network)
    return dataclasses.replace(
        plan,
        reading=reading,
        collectives=sent,
        facts=compiled.facts,
        memory=compiled_memory(compiled),
    )


def without_probes(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, probe_every=None))


def _network(topology: Topology, compiled: Compiled) -> Network:
    return Network(topology, tuple(tuple(c) for c in compiled.facts["coords"] if c))


def compiled_memory(compiled: Compiled) -> Memory:
    """By owner; the sum is the compiler's own count of one device, without the code on TPUs.

    Parameters and optimizer state are exact.  Gradients are as large as the parameters.  Of the
    compiler's temporaries what JAX stores for the backward pass are activations, and the rest,
    with inputs and code, are temporaries.
    """
    facts, sizes = compiled.facts, compiled.facts["memory"]
    total = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    total += sizes.get("generated_code", 0)  # of TPUs it is not made
    parameters, state = facts["parameters"], facts["optimizer_state"]
    gradients = min(parameters, sizes["temp"])
    activations = min(facts["stored"], sizes["temp"] - gradients)
    rest = total - parameters - state - gradients - activations
    return Memory(parameters, state, gradients, activations, rest)


def refused_memory(memory: Memory, needed: float | None) -> Memory:
    """The analytic memory by owner, made to add up to what the compiler counted, where it said so.

    Parameters and optimizer state are exact; of the rest, activations come last.  `needed` is all
    that the program needs, arguments too, though libtpu's message may speak of temporaries.
    """
    if needed is None:
        return memory
    rest = needed - memory.parameters - memory.optimizer_state
    gradients = min(memory.gradients, rest)
    activations = min(memory.activations, rest - gradients)
    temporaries = rest - gradients - activations
    return dataclasses.replace(
        memory, gradients=gradients, activations=activations, temporaries=temporaries
    )


def as_json(plan: Plan, price: float | None) -> dict[str, Any]:
    """All numbers of a plan, for machines; every time in it is predicted."""
    fastest, best, slowest = plan.step_s
    middle = plan.middle_s
    hours = None if middle is None else plan.chip_hours(middle)
    mfu = [None if s is None else plan.mfu(s) for s in plan.step_s]
    reading = dataclasses.asdict(plan.reading) if plan.reading else None
    return to_jsonable(
        {
            "config": plan.name,
            "topology": plan.topology.name,
            "devices": plan.topology.num_devices,
            "mesh": plan.estimate.mesh,
            "answer": plan.answer,
            "parameters": sum(num_params(plan.config.model).values()),
            "fits": plan.fits,
            "hbm_bytes": dataclasses.asdict(plan.memory),
            "hbm_total_bytes": plan.memory.total,
            "hbm_capacity_bytes": plan.capacity,
            "tokens_per_step": plan.estimate.tokens_per_step,
            "model_flops_formula": FORMULA,
            "model_flops_per_device": plan.model_flops,
            "executed_flops_per_device": plan.executed_flops,
            "useful_frac": plan.useful_frac,
            "predicted": {
                "step_s": {"perfect_overlap": fastest, "best": best, "no_overlap": slowest},
                "mfu": {"perfect_overlap": mfu[0], "best": mfu[1], "no_overlap": mfu[2]},
                "tokens_per_s": best and plan.tokens_per_s(best),
                "days": plan.days,
                "chip_hours": hours,
                "cost": None if price is None or hours is None else hours * price,
            },
            "analytic": dataclasses.asdict(plan.estimate),
            "program": reading,
            "collectives": [dataclasses.asdict(c) for c in plan.collectives],
            "compiler": plan.facts,
            "error": plan.too_much,
        }
    )  # fmt: skip
