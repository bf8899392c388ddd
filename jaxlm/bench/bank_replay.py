# SPDX-License-Identifier: Apache-2.0
"""An idea bank replayed: how much early stopping saves and costs, and what the gate lets through.

Both run the policies themselves (research/policies) on the bank's real curves, over many orders of its
ideas and choices of its seeds; the truth is the bank's mean over all seeds.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from jaxlm.bench.policies import SEEDS_APART
from jaxlm.core.errors import DataError
from jaxlm.research.bank import Bank, BankWorld
from jaxlm.research.policies.base import WITHIN_SEED, Knowledge, Outcome, Purse, drive
from jaxlm.research.policies.early_stop import early_stop
from jaxlm.research.policies.promotion import promote
from jaxlm.research.simulate import World
from jaxlm.research.stats.noise import Noise
from jaxlm.research.stats.shrink import Prior

SURE = 2.0  # standard errors from 0 of an effect whose sign counts as known


@dataclasses.dataclass(frozen=True)
class Stops:
    """Of a campaign, or of several."""

    saved: float  # share of the compute of all runs begun
    saved_first: float  # the same, of the runs with which each idea came first
    kills: int
    false_kills: int  # that would have won
    covered: float  # share of campaigns whose audit interval holds their own false-kill rate

    @property
    def rate(self) -> float:
        return self.false_kills / max(1, self.kills)


def stops_of(world: World, outcome: Outcome) -> Stops:
    """What a campaign's kills would have been, had they run on."""
    would = world.run([trial for trial, _ in outcome.killed])
    bars = [bar for _, bar in outcome.killed]
    lost = sum(x is not None and x < bar for x, bar in zip(would, bars, strict=True))
    notes = outcome.notes
    # the audited are drawn from all that was to be killed, and are of it
    share = (lost + notes["audited_wrong"]) / max(1, len(bars) + notes["audited"])
    covered = notes["false_kill_low"] <= share <= notes["false_kill_high"]
    saved = notes["saved_share"], notes["saved_share_first"]
    return Stops(*saved, len(bars), lost, float(covered))


def total(found: Sequence[Stops]) -> Stops:
    return Stops(
        float(np.mean([s.saved for s in found])),
        float(np.mean([s.saved_first for s in found])),
        sum(s.kills for s in found),
        sum(s.false_kills for s in found),
        float(np.mean([s.covered for s in found])),
    )


def replay_stops(bank: Bank, budget: float, count: int) -> list[Stops]:
    """early_stop over `count` draws of the bank, at each scale by itself."""
    found = []
    for alone in bank.by_scale():
        worlds = [BankWorld(alone, k) for k in range(count)]
        plans = [
            early_stop(world.ideas, budget, k * SEEDS_APART, _known(alone, 0))
            for k, world in enumerate(worlds)
        ]
        campaigns = zip(worlds, plans, strict=True)
        found.append(
            total([stops_of(w, drive(plan, w.run, Purse(budget))) for w, plan in campaigns])
        )
    return found


@dataclasses.dataclass(frozen=True)
class Gate:
    """Shares over draws; nan where the bank has no such idea."""

    runs: int  # at the large scale
    turning: tuple[str, ...]  # surely good at the small scale, surely bad at the large one
    true: tuple[str, ...]  # surely good at both
    unknown: int  # good at the small scale, not in the table at the large one
    blocked: float  # of the turning ones
    adopted: float  # of the true ones


def replay_gate(bank: Bank, runs: int, count: int) -> Gate:
    """promote, given all ideas that are surely good at the small scale.

    Raises DataError for a bank of one scale.
    """
    if len(bank.losses) < 2:
        raise DataError("the gate needs a bank of two scales; this one has one")
    z = np.array([[_z(bank, idea, scale) for idea in bank.ideas[1:]] for scale in (0, 1)])
    names = np.array(bank.ideas[1:])
    good = z[0] < -SURE
    turning, true = names[good & (z[1] > SURE)], names[good & (z[1] < -SURE)]
    unknown = int(np.isnan(z[1][good]).sum())
    good &= ~np.isnan(z[1])
    blocked, adopted = [], []
    for k in range(count):
        world = BankWorld(bank, k)
        known = dataclasses.replace(_known(bank, 1), scale_costs=(1.0, 1.0))
        kept: frozenset[str] = frozenset()
        if good.any():
            plan = promote(names[good].tolist(), runs, k * SEEDS_APART, known)
            kept = drive(plan, world.run, Purse(runs, (1.0, 1.0))).kept
        blocked += [idea not in kept for idea in turning]
        adopted += [idea in kept for idea in true]
    share = lambda found: float(np.mean(found)) if found else math.nan
    return Gate(runs, tuple(turning), tuple(true), unknown, share(blocked), share(adopted))


def _z(bank: Bank, idea: str, scale: int) -> float:
    """Effect over its standard error; nan for an idea that did not complete."""
    effect, se = bank.effect(idea, scale)
    return effect / se if se else math.nan


def _known(bank: Bank, scale: int) -> Knowledge:
    """The noise, as a pilot would have it, and effects of a size that goes with it."""
    sigma = bank.noise(scale).sigma
    noise, prior = Noise(WITHIN_SEED * sigma, 8), Prior(mean_effect=3 * sigma)
    return Knowledge(noise=noise, prior=prior, late=bank.late)


def table(found: Sequence[Stops], gates: Sequence[Gate]) -> Iterator[str]:
    """Lines for people; found: by scale."""
    for scale, stops in enumerate(found):
        yield (
            f"early stopping, scale {scale}: {stops.saved:.0%} of compute saved "
            f"({stops.saved_first:.0%} while ideas are new), {stops.rate:.1%} false kills of "
            f"{stops.kills:,}; the audit's interval holds the truth in {stops.covered:.0%} of campaigns"
        )
    for gate in gates:
        if gate is gates[0]:
            names = (", ".join(gate.turning) or "none", ", ".join(gate.true) or "none")
            yield f"signs that turn with scale: {names[0]}; good at both: {names[1]}"
            if gate.unknown:
                yield f"not tried at the large scale, and left out of the gate: {gate.unknown}"
        yield (
            f"gate, {gate.runs} large runs: {gate.blocked:.0%} of turning ones blocked, "
            f"{gate.adopted:.0%} of true ones adopted"
        )
