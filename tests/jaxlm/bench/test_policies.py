# SPDX-License-Identifier: Apache-2.0
"""The bench of policies: its scores against a count by hand, its table and its page."""

import re

import numpy as np
import pytest

from jaxlm.bench.policies import HEADER, bench_bank, bench_simulated, curves, score, table
from jaxlm.research.bank import Bank
from jaxlm.research.policies.base import Knowledge, Purse, drive
from jaxlm.research.policies.greedy import greedy
from jaxlm.research.simulate import WORLDS, SimulatedWorld

NAMES = ["greedy", "halving"]


def quiet(*_: object) -> None:
    pass


def test_scores_are_what_a_count_of_the_choice_says() -> None:
    world = SimulatedWorld(WORLDS["interactions"], 3)
    gain, claimed, keeps, false, good, compute = score("greedy", world, 40, 1, Knowledge())
    outcome = drive(greedy(world.ideas, 40, 1, Knowledge()), world.run, Purse(40))
    worth = {i: world.truth(outcome.kept) - world.truth(outcome.kept - {i}) for i in outcome.kept}
    assert gain == -world.truth(outcome.kept)
    assert claimed == outcome.claimed_gain
    assert (keeps, false) == (len(worth), sum(w >= 0 for w in worth.values()))
    assert good == sum(e < 0 for e in world.effects[0][:40])
    assert compute == 40


def test_greedy_is_its_own_measure_and_rows_repeat() -> None:
    rows = bench_simulated(NAMES, ["calibrated"], [20, 40], 4, quiet, sigmas=[1e-3])
    assert [(r.policy, r.budget) for r in rows] == [(n, b) for b in (20, 40) for n in NAMES]
    assert all(r.ratio == 1.0 and r.ratio_se == 0.0 for r in rows if r.policy == "greedy")
    assert rows == bench_simulated(NAMES, ["calibrated"], [20, 40], 4, quiet, sigmas=[1e-3])


def test_the_table_has_a_line_per_row_and_the_page_the_curves() -> None:
    rows = bench_simulated(NAMES, ["calibrated"], [20, 40], 2, quiet, sigmas=[1e-3])
    lines = list(table(rows))
    assert len(lines) == 5 and all(word in lines[0] for word in HEADER)
    html = curves(rows)
    assert html.count("<figure") == 2
    assert not re.search(r"(src|href)=.?http", html)
    with pytest.raises(KeyError):
        bench_simulated(NAMES, ["nowhere"], [20], 1, quiet)


def test_a_bank_is_benched_at_every_scale_and_noise() -> None:
    rng = np.random.default_rng(0)
    losses = 2 + np.linspace(-0.05, 0.05, 21)[:, None, None] + rng.normal(0, 0.01, (21, 4, 2))
    names = ("baseline", *(f"i{k}" for k in range(20)))
    bank = Bank(names, (0, 1, 2, 3), (0.3, 1.0), (losses, 1 + losses / 3))
    rows = bench_bank(["greedy"], bank, [15], 3, quiet, factors=(0.5, 2.0))
    sigmas = [bank.noise(scale).sigma * f for scale in (0, 1) for f in (0.5, 2.0)]
    assert [r.sigma for r in rows] == pytest.approx(sigmas)
    assert [r.world for r in rows] == [f"idea bank, scale {k}" for k in (0, 0, 1, 1)]
    assert all(r.compute == 15 for r in rows)
