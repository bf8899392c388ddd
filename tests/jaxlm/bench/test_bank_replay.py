# SPDX-License-Identifier: Apache-2.0
"""Early stopping and the gate on a bank whose truth is planted."""

import math

import numpy as np
import pytest

from jaxlm.bench.bank_replay import replay_gate, replay_stops, table
from jaxlm.core.errors import DataError
from jaxlm.research.bank import Bank

FRACTIONS = tuple(np.linspace(0.1, 1.0, 10).round(2))
SIGMA = 0.01


def bank(early: float = 0.01, seeds: int = 16) -> Bank:
    """30 ideas: 6 good at both scales, 4 that turn, 8 that do nothing, 12 that are bad."""
    rng = np.random.default_rng(0)
    small = np.repeat([0.0, -0.03, -0.03, 0.0, 0.04], [1, 6, 4, 8, 12])
    large = np.repeat([0.0, -0.025, 0.025, 0.0, 0.03], [1, 6, 4, 8, 12])
    tables = []
    for effect in (small, large):
        own = rng.normal(0, SIGMA, (31, seeds, 1))
        on_the_way = rng.normal(0, 0.3 * SIGMA, (31, seeds, 10)) * (1 - np.array(FRACTIONS))
        off = rng.normal(0, early, (31, 1, 10)) * (1 - np.array(FRACTIONS))
        curve = 2 + 1 / np.sqrt(FRACTIONS)
        tables.append(curve + effect[:, None, None] + own + on_the_way + off)
    names = ("baseline", *(f"i{k:02d}" for k in range(30)))
    return Bank(names, tuple(range(seeds)), FRACTIONS, tuple(tables))


def test_early_stopping_saves_much_and_seldom_kills_what_would_have_won() -> None:
    stops = replay_stops(bank(), 120, 20)[0]
    assert stops.saved >= 0.25 and stops.kills > 100
    assert stops.rate <= 0.05 and stops.covered >= 0.9


def test_savings_on_what_comes_again_are_told_apart() -> None:
    """One time around at a budget that ends there; later ones are mostly known losers."""
    once, often = replay_stops(bank(), 20, 20)[0], replay_stops(bank(), 120, 20)[0]
    assert once.saved == once.saved_first
    assert often.saved > often.saved_first > 0


def test_where_the_start_says_nothing_little_is_stopped() -> None:
    honest = replay_stops(bank(), 120, 10)[0]
    misleading = replay_stops(bank(early=0.2), 120, 10)[0]
    assert misleading.saved_first < honest.saved_first / 2
    assert misleading.rate <= 0.05


def test_the_gate_blocks_what_turns_and_adopts_what_holds() -> None:
    gate = replay_gate(bank(), 64, 20)
    assert (gate.turning, gate.true) == (
        tuple(f"i{k:02d}" for k in range(6, 10)), tuple(f"i{k:02d}" for k in range(6)),
    )  # fmt: skip
    assert gate.blocked >= 0.9 and gate.adopted >= 0.8
    lines = list(table(replay_stops(bank(), 60, 3), [gate]))
    assert [line.split(":")[0] for line in lines[:2]] == [
        f"early stopping, scale {k}" for k in (0, 1)
    ]
    assert "64 large runs" in lines[-1]


def test_a_bank_of_one_scale_has_no_gate_and_one_without_good_ideas_no_shares() -> None:
    one = bank()
    with pytest.raises(DataError, match="two scales"):
        replay_gate(Bank(one.ideas, one.seeds, one.fractions, one.losses[:1]), 16, 2)
    bad = tuple(table + (np.arange(31) > 0)[:, None, None] for table in one.losses)
    gate = replay_gate(Bank(one.ideas, one.seeds, one.fractions, bad), 16, 2)
    assert math.isnan(gate.blocked) and gate.true == ()
