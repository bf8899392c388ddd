# SPDX-License-Identifier: Apache-2.0
"""What every policy is: a generator that asks for runs, is sent their losses, and ends in an outcome.

    losses = yield [Trial(arm, seed), ...]          any number of times, then
    return Outcome(kept, claimed_gain, interval)

So the simulator, the replay of an idea bank and real runs drive one and the same code (`drive`).
An idea is a name; an arm is a set of ideas put on the baseline together, the empty set the
baseline.  Lower loss is better: an effect is arm minus baseline, so a good one is negative, while a
*gain* is baseline minus arm.  Cost is counted in full baseline runs.  A run is never paid twice: one
that was stopped at a fraction of its training goes on from there, and one that ended is looked up.
"""

import dataclasses
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

from jaxlm.research.stats.noise import Noise
from jaxlm.research.stats.shrink import Prior

BASELINE: frozenset[str] = frozenset()
_ROUNDING = 1e-9  # of sums of fractions


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """A run to train: an arm at a seed, up to a fraction of its training, at a scale (0: the small)."""

    arm: frozenset[str]
    seed: int
    fraction: float = 1.0
    scale: int = 0


# An idea that sets one of these changes how the learning rate rises and falls, and with it when the loss
# falls: its curve and the baseline's cross, so that it can be judged at the end only.
SCHEDULE = frozenset(
    {
        "OptimConfig.schedule",
        "OptimConfig.warmup_steps",
        "OptimConfig.decay_frac",
        "OptimConfig.final_lr_frac",
        "TrainConfig.num_steps",
    }
)


def tells_late(changes: Iterable[str]) -> bool:
    """Whether an idea with these changed fields tells nothing before its end."""
    return not SCHEDULE.isdisjoint(key.rsplit("/", 1)[-1] for key in changes)


Losses = list[float | None]  # in the order of the trials; None: the run did not complete


# Of the spread between seeds, what is not common to all arms of a seed; in the idea banks 0.40, 0.50, 0.62
WITHIN_SEED = 0.5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a policy decided.  interval is None where the policy's data cannot support one."""

    kept: frozenset[str]
    claimed_gain: float
    interval: tuple[float, float] | None = None  # 95 %, of the gain
    effects: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, float] = dataclasses.field(default_factory=dict)  # what it measured
    killed: tuple[tuple[Trial, float], ...] = ()  # run that was stopped, loss it would have to beat


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """What is known before the first run, from the ledger or from public logs."""

    noise: Noise | None = None  # of an arm beside others on its seed, if it was measured before
    prior: Prior = dataclasses.field(default_factory=Prior)  # of the ideas' effects
    smallest_effect: float = 0.0  # worth keeping, in nats
    early_fraction: float = 0.3  # where a run may first be judged: after warm-up and transient
    scale_costs: tuple[float, ...] = (1.0, 4.0)  # of a full run at each scale
    max_block: int = 32  # runs of one factorial block; its arms carry up to half as many ideas
    false_discovery: float = 0.13  # aimed at, by policies that control it
    late: frozenset[str] = frozenset()  # ideas that tell nothing before their end (tells_late)


Plan = Generator[list[Trial], Losses, Outcome]
Policy = Callable[[Sequence[str], float, int, Knowledge], Plan]  # ideas, budget, seed, knowledge


class Purse:
    """What has been run, and what is left of the budget."""

    def __init__(self, budget: float, scale_costs: Sequence[float] = (1.0, 4.0)) -> None:
        if not budget > 0 or math.isinf(budget):
            raise ValueError(f"budget must be positive and finite, got {budget!r}")
        self.budget, self.spent, self.scale_costs = float(budget), 0.0, tuple(scale_costs)
        self._reached: dict[tuple[frozenset[str], int, int], float] = {}

    @property
    def left(self) -> float:
        return self.budget - self.spent

    def cost(self, trials: Sequence[Trial]) -> float:
        """In full baseline runs, without what has been paid already."""
        reached: dict[tuple[frozenset[str], int, int], float] = {}
        for t in trials:
            key = (t.arm, t.seed, t.scale)
            reached[key] = max(t.fraction, reached.get(key, 0.0))
        return sum(
            max(0.0, fraction - self._reached.get(key, 0.0)) * self.scale_costs[key[2]]
            for key, fraction in reached.items()
        )

    def affords(self, trials: Sequence[Trial]) -> bool:
        return self.cost(trials) <= self.left + _ROUNDING

    def pay(self, trials: Sequence[Trial]) -> None:
        """Raises ValueError where the budget does not reach."""
        price = self.cost(trials)
        if price > self.left + _ROUNDING:
            raise ValueError(
                f"{len(trials)} runs cost {price:.3g}, left of the budget: {self.left:.3g}"
            )
        self.spent += price
        for t in trials:
            key = (t.arm, t.seed, t.scale)
            self._reached[key] = max(t.fraction, self._reached.get(key, 0.0))


def relay(plan: Plan, purse: Purse) -> Plan:
    """A policy inside of another, whose purse pays its runs too."""
    try:
        trials = next(plan)
        while True:
            purse.pay(trials)
            trials = plan.send((yield trials))
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome


def drive(plan: Plan, run: Callable[[list[Trial]], Losses], purse: Purse) -> Outcome:
    """Runs a policy to its end; `purse` counts apart from the policy's own.

    Raises ValueError for a policy that asks for more than the budget.
    """
    try:
        trials = next(plan)
        while True:
            purse.pay(trials)
            trials = plan.send(run(trials))
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome
