# SPDX-License-Identifier: Apache-2.0
"""The fit of combined arms' luck, on luck that was made."""

import csv
from pathlib import Path

import numpy as np
import pytest

from jaxlm.research.bank import COLUMNS
from scripts.idea_combinations import finals, fit, luck, step

SEEDS = range(400)


def table(path: Path, losses: dict[str, np.ndarray]) -> Path:
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(COLUMNS)
        for idea, values in losses.items():
            writer.writerows([idea, 0, seed, 1.0, values[seed]] for seed in SEEDS)
    return path


def test_the_fit_finds_the_shares_that_luck_was_made_with(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = 2 + rng.normal(0, 0.1, len(SEEDS))
    own = {name: rng.normal(0, 0.01 * k, len(SEEDS)) for k, name in enumerate("abcd", start=1)}
    alone = {"baseline": base, **{i: base + 0.1 + x for i, x in own.items()}}
    together = {
        arm: base - 0.3 + 0.5 * sum(own[i] for i in arm.split(" + "))
        + 0.4 * np.sqrt(sum(np.mean(own[i] ** 2) for i in arm.split(" + "))) * rng.normal(size=len(SEEDS))
        for arm in ("a + b", "c + d", "a + b + c + d")
    }  # fmt: skip
    found = luck(finals(table(tmp_path / "t", together)), finals(table(tmp_path / "a", alone)))
    assert sorted(map(len, found)) == [2, 2, 4]
    assert fit(found.values()) == pytest.approx((0.5, 0.4), abs=0.03)


def test_the_step_is_that_of_the_one_idea_more(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = 2 + rng.normal(0, 0.1, len(SEEDS))
    a, b = rng.normal(0, 0.01, (2, len(SEEDS)))
    alone = {"baseline": base, "a": base + a, "b": base + b, "c": base - a}
    together = {"a + c": base + a, "a + b + c": base + a + 0.7 * b}
    found = luck(finals(table(tmp_path / "t", together)), finals(table(tmp_path / "a", alone)))
    assert step(found, 2) == pytest.approx(0.7) and np.isnan(step(found, 3))
