# SPDX-License-Identifier: Apache-2.0
"""What every policy owes: its budget to the run, reproducibility, and an outcome that adds up."""

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from jaxlm.cli.ablate import DEFAULT_POLICY
from jaxlm.core.errors import ConfigError
from jaxlm.research.policies.base import Knowledge, Losses, Outcome, Plan, Purse, Trial, drive
from jaxlm.research.policies.catalogue import POLICIES, RIVAL, policy
from jaxlm.research.policies.confirm import confirm
from jaxlm.research.policies.designs import design
from jaxlm.research.policies.evidence import block_trials
from jaxlm.research.policies.halving import has_optuna
from jaxlm.research.policies.promotion import promote
from jaxlm.research.simulate import SimulatedWorld, WorldSpec
from jaxlm.research.stats.noise import Noise

KNOWN = Knowledge(noise=Noise(1e-3, 8))
NAMES = [
    pytest.param(n, marks=pytest.mark.skipif(n == "asha" and not has_optuna(), reason="no Optuna"))
    for n in POLICIES
]


class Counting:
    """A world that counts compute by itself, from what it was asked for."""

    def __init__(self, world: SimulatedWorld) -> None:
        self.world = world
        self.reached = dict[tuple[object, ...], float]()
        self.batches = list[list[Trial]]()

    @property
    def asked(self) -> list[Trial]:
        return [t for batch in self.batches for t in batch]

    def run(self, trials: Sequence[Trial]) -> Losses:
        self.batches.append(list(trials))
        for t in trials:
            key = (t.arm, t.seed, t.scale)
            self.reached[key] = max(self.reached.get(key, 0.0), t.fraction)
        return self.world.run(trials)


def campaign(
    name: str, budget: float, *, seed: int = 5, spec: WorldSpec | None = None
) -> tuple[Outcome, Counting]:
    counting = Counting(SimulatedWorld(spec or WorldSpec(sigma=1e-3, num_ideas=80), 3))
    plan = policy(name)(counting.world.ideas, budget, seed, KNOWN)
    return drive(plan, counting.run, Purse(budget)), counting


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_never_overspent_and_mostly_used(name: str) -> None:
    for budget in (1, 1.5, 2, 4, 7.3, 12, 25, 60, 100):
        _, counting = campaign(name, budget, spec=WorldSpec(sigma=1e-3, num_ideas=400))
        assert sum(counting.reached.values()) <= budget + 1e-6
        assert sum(counting.reached.values()) >= (0.85 * budget if budget >= 60 else 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_makes_a_campaign_and_another_seed_another(name: str) -> None:
    first, other = campaign(name, 40), campaign(name, 40, seed=6 << 20)
    again = campaign(name, 40)
    assert (first[0], first[1].asked) == (again[0], again[1].asked)
    assert first[1].asked != other[1].asked


@pytest.mark.parametrize("name", NAMES)
def test_worlds_in_which_nothing_completes_end_with_nothing_kept(name: str) -> None:
    outcome, _ = campaign(name, 30, spec=WorldSpec(num_ideas=60, p_crash=1.0))
    assert outcome.kept == frozenset()
    assert outcome.claimed_gain == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_crashing_ideas_are_never_kept(name: str) -> None:
    outcome, counting = campaign(name, 80, spec=WorldSpec(sigma=5e-4, num_ideas=80, p_crash=0.2))
    assert outcome.kept
    assert None not in counting.world.run([Trial(frozenset({i}), 1) for i in outcome.kept])


@pytest.mark.parametrize("name", ["adaptive", "factorial", "prune-and-confirm"])
def test_the_claim_rests_on_seeds_that_no_decision_used(name: str) -> None:
    outcome, counting = campaign(name, 100)
    last = counting.batches[-1]
    assert {t.arm for t in last} == {outcome.kept, frozenset()}
    before = {t.seed for batch in counting.batches[:-1] for t in batch}
    assert not {t.seed for t in last} & before
    assert outcome.interval is not None
    assert outcome.interval[0] < outcome.claimed_gain < outcome.interval[1]


@pytest.mark.parametrize("gains", [(0.3,), (0.3, 0.1), (0.3, 0.1, 0.2)])
def test_the_interval_of_a_claim_is_that_of_its_own_pairs(gains: tuple[float, ...]) -> None:
    plan = confirm(Purse(10), frozenset({"a"}), 5, len(gains), {}, {})
    assert len(next(plan)) == 2 * len(gains)
    with pytest.raises(StopIteration) as end:
        plan.send([x for gain in gains for x in (2.0, 2.0 - gain)])
    outcome, sem = end.value.value, scipy.stats.sem(gains) if len(gains) > 1 else 0
    assert outcome.claimed_gain == pytest.approx(np.mean(gains))
    if len(gains) == 1:
        assert outcome.interval is None
    else:
        want = scipy.stats.t.interval(0.95, len(gains) - 1, np.mean(gains), sem)
        assert outcome.interval == pytest.approx(want)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_design_never_asks_for_one_run_twice(count: int) -> None:
    """With few ideas arms repeat; on one seed they would be one run, and no measure of noise."""
    ideas = [f"i{k}" for k in range(count)]
    trials = block_trials(design(ideas, np.random.default_rng(0), 8), 5)
    assert len(set(trials)) == len(trials) == 8
    assert {t.seed for t in trials} <= set(range(5, 13))


def test_a_policy_that_overspends_is_stopped() -> None:
    def spendthrift() -> Plan:
        yield [Trial(frozenset(), seed) for seed in range(3)]
        return Outcome(frozenset(), 0.0)

    with pytest.raises(ValueError, match="3 runs cost 3"):
        drive(spendthrift(), lambda trials: [1.0] * len(trials), Purse(2.5))


def test_a_run_is_paid_once_and_going_on_costs_the_rest() -> None:
    purse, arm = Purse(10, (1.0, 4.0)), frozenset({"a"})
    purse.pay([Trial(arm, 0, 0.3), Trial(arm, 0, 0.5)])
    assert purse.spent == pytest.approx(0.5)
    purse.pay([Trial(arm, 0), Trial(arm, 0, 0.3), Trial(arm, 0, scale=1)])
    assert purse.spent == pytest.approx(5.0)
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="budget"):
            Purse(bad)


def test_unknown_policies_are_named_with_the_nearest() -> None:
    assert {DEFAULT_POLICY, RIVAL} <= POLICIES.keys()
    with pytest.raises(ConfigError, match="did you mean 'greedy'"):
        policy("gredy")


@pytest.mark.skipif(has_optuna(), reason="Optuna is there")
def test_without_optuna_asha_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match="Optuna"):
        campaign("asha", 10)


def test_the_gate_keeps_its_budget_at_the_price_of_the_scale() -> None:
    world = Counting(SimulatedWorld(WorldSpec(sigma=1e-3), 1))
    for budget in (3.0, 16.0, 50.0):
        outcome = drive(promote(world.world.ideas[:9], budget, 1, KNOWN), world.run, Purse(budget))
        assert {t.scale for t in world.asked} <= {1}
    assert 4 * len({(t.arm, t.seed) for t in world.asked}) <= 16 + 50
    assert outcome.kept <= set(world.world.ideas[:9])
