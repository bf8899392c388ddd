# SPDX-License-Identifier: Apache-2.0
"""The idea bank's reader and its replay, on a synthetic table."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxlm.core.errors import DataError
from jaxlm.research.bank import COLUMNS, Bank, BankWorld, read_bank
from jaxlm.research.policies.base import BASELINE, Knowledge, Purse, Trial, drive
from jaxlm.research.policies.catalogue import policy
from jaxlm.research.stats.noise import Noise

IDEAS = ["baseline", *(f"i{k:02d}" for k in range(24))]
EFFECTS = np.array([0.0, *np.repeat([-0.03, 0.0, 0.03, -0.01], 6)])
SEEDS, FRACTIONS = range(6), (0.3, 0.6, 1.0)

Rows = list[list[object]]


def rows() -> Rows:
    rng = np.random.default_rng(0)
    made: Rows = []
    for scale in (0, 1):
        common = rng.normal(0, 0.01, len(SEEDS))
        for idea, effect in zip(IDEAS, EFFECTS, strict=True):
            for seed in SEEDS:
                own = rng.normal(0, 0.005)
                for f in FRACTIONS:
                    loss = 2 + effect + (common[seed] + own) / f + rng.normal(0, 0.002) * (f < 1)
                    made.append([idea, scale, seed, f, "" if idea == "i23" else round(loss, 6)])
    return made


def write(path: Path, table: Rows) -> Path:
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([list(COLUMNS), *table])
    return path


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return read_bank(write(tmp_path_factory.mktemp("bank") / "bank.csv", rows()))


def test_an_arm_of_one_idea_is_the_very_run_of_the_table(bank: Bank) -> None:
    world = BankWorld(bank)
    for idea, scale, seed, fraction, loss in rows():
        arm = BASELINE if idea == "baseline" else frozenset({str(idea)})
        (found,) = world.run([Trial(arm, int(str(seed)), float(str(fraction)), int(str(scale)))])
        assert found == (None if loss == "" else pytest.approx(loss, abs=1e-12))


def test_truth_is_the_mean_difference_and_adds_up(bank: Bank) -> None:
    table = {(r[0], r[2]): r[4] for r in rows() if r[1] == 0 and r[3] == 1.0}
    want = {i: np.mean([table[i, s] - table["baseline", s] for s in SEEDS]) for i in ("i00", "i07")}  # type: ignore[operator]
    world = BankWorld(bank, draw=3)
    assert world.truth(frozenset({"i00"})) == pytest.approx(want["i00"])
    assert world.truth(frozenset(want)) == pytest.approx(sum(want.values()))
    assert bank.effect("i00")[0] == pytest.approx(want["i00"])


def test_an_idea_that_did_not_complete_never_does(bank: Bank) -> None:
    world = BankWorld(bank)
    assert world.run([Trial(frozenset({"i00", "i23"}), 99)]) == [None]


def test_draws_differ_in_order_and_noise_and_repeat(bank: Bank) -> None:
    first, second = BankWorld(bank, 1), BankWorld(bank, 2)
    assert sorted(first.ideas) == sorted(second.ideas) == sorted(IDEAS[1:])
    assert first.ideas != second.ideas
    trials = [Trial(frozenset({"i01", "i02"}), s) for s in range(20)]
    assert first.run(trials) != second.run(trials)
    assert first.run(trials) == BankWorld(bank, 1).run(trials)


def test_fractions_between_are_between(bank: Bank) -> None:
    world = BankWorld(bank)
    low, middle, high, before = (
        world.run([Trial(BASELINE, 0, f)])[0] for f in (0.3, 0.45, 0.6, 0.01)
    )
    assert low is not None and middle is not None and high is not None
    assert min(low, high) < middle < max(low, high)
    assert before == low


def test_ideas_of_the_schedule_are_known_from_the_file_beside_the_table() -> None:
    late = read_bank(Path("docs/idea_bank.csv")).late
    assert {"wsd", "schedule-free", "no warmup", "half the batch, twice the updates"} <= late
    assert not late & {"baseline", "muon", "weight decay 0.3", "lr x2.5"}


@pytest.mark.parametrize("name", ["adaptive", "greedy", "early-stop"])
def test_policies_run_on_a_bank_as_they_do_in_simulation(bank: Bank, name: str) -> None:
    world = BankWorld(bank, 4)
    knowledge = Knowledge(noise=Noise(bank.noise().sigma, 8))
    outcome = drive(policy(name)(world.ideas, 30, 7, knowledge), world.run, Purse(30))
    assert -world.truth(outcome.kept) > 0.05  # of 0.2 that there is
    assert "i23" not in outcome.kept


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[:-1], "1 rows missing, the first"),
        (lambda t: [*t, t[0]], "there twice"),
        (lambda t: [r for r in t if r[0] != "baseline"], "'baseline'"),
        (lambda t: [[*r[:4], "x"] for r in t], "not a number"),
        (lambda t: [r for r in t if r[3] != 1.0], "fraction 1"),
        (lambda t: [r for r in t if r[1] == 1], "scales must be 0"),
    ],
)
def test_tables_with_holes_are_refused(tmp_path: Path, spoil: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_bank(write(tmp_path / "bank.csv", spoil(rows())))  # type: ignore[operator]


def test_each_scale_is_a_bank_of_its_own(bank: Bank) -> None:
    small, large = bank.by_scale()
    assert small.ideas == bank.ideas
    assert large.ideas == tuple(idea for idea in IDEAS if idea != "i23")  # it did not complete
    for idea in large.ideas:
        assert large.effect(idea) == bank.effect(idea, scale=1)
        assert small.effect(idea) == pytest.approx(bank.effect(idea), nan_ok=True)
    trial = Trial(frozenset({"i03"}), 4, 0.6)
    assert BankWorld(large).run([trial]) == BankWorld(bank).run(
        [dataclasses.replace(trial, scale=1)]
    )


def test_an_idea_not_yet_tried_at_the_large_scale_is_unknown_there_alone(
    tmp_path: Path, bank: Bank
) -> None:
    kept = [row for row in rows() if not (row[0] == "i00" and row[1] == 1 and row[2] == 2)]
    partial = read_bank(write(tmp_path / "partial.csv", kept))
    assert partial.effect("i00") == bank.effect("i00")
    assert np.isnan(partial.effect("i00", scale=1)[0])
    assert partial.effect("i01", scale=1) == bank.effect("i01", scale=1)
    without = [row for row in rows() if not (row[0] == "i00" and row[1] == 0 and row[2] == 2)]
    with pytest.raises(DataError, match="3 rows missing"):
        read_bank(write(tmp_path / "gap.csv", without))
