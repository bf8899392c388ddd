# SPDX-License-Identifier: Apache-2.0
"""Stopping losers: the predicted chance to win is right, and whoever is catching up goes on."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from jaxlm.research.policies.base import (
    Knowledge,
    Losses,
    Outcome,
    Purse,
    Trial,
    drive,
    tells_late,
)
from jaxlm.research.policies.early_stop import early_stop
from jaxlm.research.policies.futility import MIN_HISTORY, Futility


@pytest.mark.parametrize("num_readings", [1, 2])
def test_the_chance_to_win_is_as_often_right_as_it_says(num_readings: int) -> None:
    """P(y < threshold) at the y that comes is uniform, however short the history."""
    rng, told = np.random.default_rng(0), []
    for _ in range(2000):
        x = rng.normal(0, 1, (MIN_HISTORY + 1, num_readings))
        y = 0.3 + x.sum(axis=1) * 0.5 + rng.normal(0, 0.2, MIN_HISTORY + 1)
        history = Futility()
        for readings, final in zip(x[:-1], y[:-1], strict=True):
            history.add(readings, final)
        told.append(history.p_win(x[-1], y[-1]))
    for share in (0.05, 0.5, 0.95):
        error = (share * (1 - share) / 2000) ** 0.5
        assert np.mean(np.array(told) < share) == pytest.approx(share, abs=4 * error)


def test_ideas_that_are_far_worse_do_not_blur_those_near_a_win() -> None:
    rng, history = np.random.default_rng(0), Futility()
    for x in rng.normal(0, 1, 30):
        history.add([x], x + rng.normal(0, 0.2))
    before = history.p_win([1.0], 0.0)
    for x in (30.0, 60.0, 100.0):  # of which little is left at the end
        history.add([x], 0.2 * x)
    assert before < 0.01
    assert history.p_win([1.0], 0.0) < 0.05


@dataclasses.dataclass
class Curves:
    """Effects by name; those of `late` start far behind and arrive after half of the training."""

    effects: dict[str, float]
    late: frozenset[str] = frozenset()
    noise: float = 0.01
    asked: list[Trial] = dataclasses.field(default_factory=list)

    def run(self, trials: Sequence[Trial]) -> Losses:
        self.asked += trials
        return [self.loss(t) for t in trials]

    def loss(self, trial: Trial) -> float:
        name = "+".join(sorted(trial.arm))
        run = [trial.seed, *name.encode()]
        draw = np.random.default_rng(run).normal(0, self.noise)
        if trial.fraction < 1:  # a reading
            draw += np.random.default_rng([int(1e3 * trial.fraction), *run]).normal(
                0, self.noise / 3
            )
        behind = max(0.0, 1 - trial.fraction / 0.6) * len(trial.arm & self.late)
        return 2 + sum(self.effects[i] for i in trial.arm) + behind + float(draw)

    def drive(
        self, budget: float, seed: int = 0, least: float = 0.0, told: frozenset[str] = frozenset()
    ) -> Outcome:
        known = Knowledge(smallest_effect=least, late=told)
        return drive(early_stop(list(self.effects), budget, seed, known), self.run, Purse(budget))


def test_what_starts_behind_and_catches_up_is_told_from_what_stays_behind() -> None:
    """A quarter starts late, and half of the others are bad: how far behind says little, how it goes all."""
    effects = {f"i{k:02d}": (-0.1 if k % 4 == 0 or k % 8 < 3 else 0.2) for k in range(64)}
    world = Curves(effects, frozenset(f"i{k:02d}" for k in range(0, 64, 4)))
    outcome = world.drive(64)
    assert not [trial for trial, bar in outcome.killed if world.loss(trial) < bar]
    assert outcome.notes["audited_wrong"] == 0
    assert outcome.notes["saved_share_first"] >= 0.17
    assert outcome.kept == {idea for idea in effects if effects[idea] < 0}


def test_ideas_that_change_the_schedule_run_to_their_end() -> None:
    """They look lost until the last tenth; by their curves they would be stopped, and missed."""
    effects = {f"i{k:02d}": 0.1 + 0.01 * (k % 7) for k in range(60)} | {"wsd": -0.1}

    class Crossing(Curves):
        def loss(self, trial: Trial) -> float:
            return super().loss(trial) + 0.5 * ("wsd" in trial.arm and trial.fraction < 0.95)

    assert Crossing(effects).drive(100).kept == frozenset()
    world = Crossing(effects)
    outcome = world.drive(100, told=frozenset({"wsd"}))
    assert outcome.kept == {"wsd"}
    assert outcome.killed and not any("wsd" in trial.arm for trial, _ in outcome.killed[:1])


def test_what_changes_the_schedule_is_told_by_its_fields() -> None:
    assert tells_late(["OptimConfig.peak_lr", "OptimConfig.schedule"])
    assert tells_late(["some/OptimConfig.decay_frac"]) and tells_late(["TrainConfig.num_steps"])
    assert not tells_late(["OptimConfig.weight_decay", "ModelConfig.num_layers"])
    assert not tells_late([])


def test_passed_over_ideas_come_again_beside_the_incumbent_on_the_next_seed() -> None:
    world = Curves({f"i{k}": 0.1 if k else -0.1 for k in range(4)})
    outcome = world.drive(30)
    assert outcome.kept == {"i0"}
    for seed in {t.seed for t in world.asked}:
        here = [t.arm for t in world.asked if t.seed == seed]
        assert here[0] == (outcome.kept if seed else frozenset())
        assert seed == 0 or frozenset({"i0", "i1"}) in here
    assert len({t.seed for t in world.asked}) >= 4


def test_an_idea_that_comes_again_is_kept_for_all_its_whole_runs_together() -> None:
    """One bad run and a good one: kept is the idea whose good one is the larger."""

    class Alternating(Curves):
        def loss(self, trial: Trial) -> float:
            odd = trial.seed % 2
            of = {"luck": -0.1 if odd else 0.3, "worth": -0.3 if odd else 0.1}
            return 2 + sum(of[idea] for idea in trial.arm)

    outcome = Alternating({"luck": 0.0, "worth": 0.0}).drive(12)
    assert outcome.kept == {"worth"}
    assert outcome.effects["worth"] == pytest.approx(-0.1)
    assert outcome.claimed_gain == pytest.approx(0.1)
