# SPDX-License-Identifier: Apache-2.0
"""What the script says of combined arms, on luck that was made by the field itself."""

import csv
from pathlib import Path

import numpy as np
import pytest

from jaxlm.research.bank import COLUMNS, Bank, read_bank
from jaxlm.research.luck import FRESH, Luck
from scripts.idea_combinations import finals, fresh, luck, step

IDEAS = ("baseline", "a", "b", "c", "d", "e")
SEEDS = range(16)


def table(path: Path, losses: dict[str, np.ndarray]) -> Path:
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(COLUMNS)
        for idea, values in losses.items():
            writer.writerows([idea, 0, seed, 1.0, values[seed]] for seed in SEEDS)
    return path


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    rng = np.random.default_rng(0)
    common = 2 + rng.normal(0, 0.05, len(SEEDS))
    own = lambda k: rng.normal(0, 0.01 * (1 + k % 3), len(SEEDS))
    return read_bank(table(tmp_path / "bank", {i: common + own(k) for k, i in enumerate(IDEAS)}))


def test_arms_with_the_fields_luck_are_told_to_have_it(bank: Bank, tmp_path: Path) -> None:
    rng, arms = np.random.default_rng(1), ("a + b", "a + d", "b + c", "b + e", "c + d", "d + e")
    field, means = Luck(bank.losses[0]), bank.losses[0][:, :, -1].mean(axis=1)
    together = {}
    for arm in arms:
        ideas = [bank.ideas.index(idea) - 1 for idea in arm.split(" + ")]
        drawn = [field.of(ideas, seed, int(rng.integers(1 << 60)))[-1] for seed in SEEDS]
        together[arm] = bank.losses[0][0, :, -1] + means[ideas].sum() + drawn
    found = luck(finals(table(tmp_path / "t", together)), bank)
    whole, expected, left = fresh(found, bank)
    assert whole > expected > 0 and left == pytest.approx(FRESH, rel=0.25)


def test_the_step_is_that_of_the_one_idea_more(bank: Bank, tmp_path: Path) -> None:
    base, b = bank.losses[0][0, :, -1], bank.losses[0][2, :, -1]
    together = {"a + c": base + 0.1, "a + b + c": base + 0.7 * (b - base)}
    found = luck(finals(table(tmp_path / "t", together)), bank)
    assert step(found, 2, bank) == pytest.approx(0.7) and np.isnan(step(found, 3, bank))
