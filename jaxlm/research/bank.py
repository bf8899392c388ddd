# SPDX-License-Identifier: Apache-2.0
"""The idea bank: real ideas, trained once over many seeds, replayed as a world for policies.

The table (CSV) has the columns idea, scale, seed, fraction, loss: one row per idea, scale, seed and
fraction of training at which it was evaluated; fraction 1 is the end, an empty loss a run that did
not complete.  'baseline' is an idea too, with the same seeds.  An idea that lacks whole runs at a
larger scale counts there as one that did not complete: nothing is known of it.

An arm's loss at fraction f is that of the baseline on its seed, plus the mean effects of its ideas,
taken to add up, plus its luck:

    loss_0(s, f) + sum_i (mean_i(f) - mean_0(f)) + luck(s, f)

s is drawn by the trial's seed alone, so that arms on one seed share what seeds share.  The luck of an idea
alone is that very run's, luck_i(s) = loss_i(s) - mean_i - (loss_0(s) - mean_0); that of ideas together is drawn
given theirs (luck.py), as arms that were trained have it.  So noise, its pairing, and early against late are
those of real runs.  What ideas do to each other's effects stays out.
"""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxlm.core.errors import DataError
from jaxlm.research.luck import Luck
from jaxlm.research.policies.base import Losses, Trial, tells_late
from jaxlm.research.records import BASELINE
from jaxlm.research.simulate import mix
from jaxlm.research.stats.noise import Noise, pool
from jaxlm.research.stats.shrink import Floats
from jaxlm.train.run_dir import read_json

COLUMNS = ("idea", "scale", "seed", "fraction", "loss")


@dataclasses.dataclass(frozen=True)
class Bank:
    """All runs: losses[scale] is (idea, seed, fraction), nan where a run did not complete."""

    ideas: tuple[str, ...]  # the baseline first
    seeds: tuple[int, ...]
    fractions: tuple[float, ...]  # rising, the last is 1
    losses: tuple[Floats, ...]
    late: frozenset[str] = frozenset()  # ideas that tell nothing before their end

    def effect(self, idea: str, scale: int = 0) -> tuple[float, float]:
        """(mean final difference to the baseline over seeds, its standard error)."""
        final = self.losses[scale][:, :, -1]
        d = final[self.ideas.index(idea)] - final[0]
        return float(d.mean()), float(d.std(ddof=1) / np.sqrt(d.size))

    def noise(self, scale: int = 0) -> Noise:
        """Of one run's final loss, pooled over ideas."""
        noise = pool([list(row[~np.isnan(row)]) for row in self.losses[scale][:, :, -1]])
        assert noise is not None  # read_bank asks for two seeds
        return noise

    def by_scale(self) -> list["Bank"]:
        """Each scale as a bank of its own; a larger one without the ideas that have not all runs there."""
        found = []
        for scale, table in enumerate(self.losses):
            is_there = ~np.isnan(table).any(axis=(1, 2)) | (scale == 0)
            ideas = tuple(np.array(self.ideas)[is_there].tolist())
            found.append(dataclasses.replace(self, ideas=ideas, losses=(table[is_there],)))
        return found


def read_bank(path: Path) -> Bank:
    """Of a table and, where it is there, of the file beside it that says what the ideas change.

    Raises DataError for a table with a column, the baseline or a run missing, or one twice.
    """
    try:
        with open(path, newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path}: no column {', '.join(sorted(missing))}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(
            f"{path}: cannot be read ({getattr(e, 'strerror', e)}); give a CSV file"
        ) from e
    try:
        cells: dict[tuple[str, int, int, float], float] = {}
        for row in rows:
            key = (row["idea"], int(row["scale"]), int(row["seed"]), float(row["fraction"]))
            if key in cells:
                raise DataError(f"{path}: {key} is there twice")
            cells[key] = float(row["loss"]) if row["loss"] else np.nan
    except (TypeError, ValueError) as e:
        raise DataError(f"{path}: not a number: {e}") from e
    return dataclasses.replace(_tabulate(path, cells), late=_late(path.with_suffix(".json")))


def _late(path: Path) -> frozenset[str]:
    """Ideas that change the schedule, by what TABLE.json says of each at each scale."""
    ideas = (read_json(path, "write it anew with scripts/idea_bank.py") or {}).get("ideas", {})
    late = (arm for arm, facts in ideas.items() if tells_late(facts.get("changes", ())))
    return frozenset(arm.rsplit(", scale ", 1)[0] for arm in late)


def _tabulate(path: Path, cells: dict[tuple[str, int, int, float], float]) -> Bank:
    names, scales = sorted({key[0] for key in cells}), sorted({key[1] for key in cells})
    seeds, fractions = sorted({key[2] for key in cells}), sorted({key[3] for key in cells})
    if BASELINE not in names or len(seeds) < 2 or not fractions or fractions[-1] != 1.0:
        raise DataError(f"{path}: needs the idea {BASELINE!r}, two seeds and the fraction 1")
    if scales != list(range(len(scales))):
        raise DataError(f"{path}: scales must be 0, 1, ..., got {scales}")
    ideas = [BASELINE, *(name for name in names if name != BASELINE)]
    begun = {key[:3] for key in cells}
    tables = []
    for scale in scales:
        keys = [[[(i, scale, s, f) for f in fractions] for s in seeds] for i in ideas]
        due = [k for idea in keys for row in idea for k in row]
        if scale > 0:  # there an idea may lack whole runs
            due = [k for k in due if k[0] == BASELINE or k[:3] in begun]
        gaps = [k for k in due if k not in cells]
        if gaps:
            raise DataError(f"{path}: {len(gaps)} rows missing, the first {gaps[0]}")
        tables.append(
            np.array([[[cells.get(k, np.nan) for k in row] for row in idea] for idea in keys])
        )
    if any(np.isnan(table[0]).any() for table in tables):
        raise DataError(f"{path}: a run of the baseline did not complete")
    return Bank(tuple(ideas), tuple(seeds), tuple(fractions), tuple(tables))


class BankWorld:
    """A bank as a world.

    draw: another order of ideas and choice of seeds; None: the table's.  noise: a factor on all luck
    and on the baseline's, for what smaller evaluations (above 1) or larger models (below 1) would be like.
    """

    def __init__(self, bank: Bank, draw: int | None = None, noise: float = 1.0) -> None:
        self.bank, self.draw, self.noise = bank, draw, noise
        order = np.arange(1, len(bank.ideas))
        if draw is not None:
            order = np.random.default_rng(draw).permutation(order)
        self.ideas = tuple(bank.ideas[i] for i in order)
        self._index = {idea: i for i, idea in enumerate(bank.ideas)}
        self._fails: list[NDArray[np.bool_]] = [
            np.asarray(np.isnan(t).any(axis=(1, 2))) for t in bank.losses
        ]
        self._means = [t.mean(axis=1) for t in bank.losses]  # (idea, fraction)
        self._luck = [Luck(t) for t in bank.losses]

    def run(self, trials: Sequence[Trial]) -> Losses:
        """None for an arm with an idea that did not complete on some seed of the table.

        Between the table's fractions losses are linear in ln f; before the first they are its.
        """
        return [self._loss(t) for t in trials]

    def truth(self, arm: frozenset[str], scale: int = 0) -> float:
        """Sum of the ideas' mean final effects, as measured over the table's seeds."""
        means = self._means[scale][:, -1]
        return float(sum(means[self._index[idea]] - means[0] for idea in sorted(arm)))

    def _loss(self, trial: Trial) -> float | None:
        index = sorted(self._index[idea] for idea in trial.arm)
        if self._fails[trial.scale][index].any():
            return None
        bank, means = self.bank, self._means[trial.scale]
        seed, key = self._seed_of(trial)
        base = bank.losses[trial.scale][0, seed]
        curve = means[0] + self.noise * (base - means[0]) + (means[index] - means[0]).sum(axis=0)
        luck = self._luck[trial.scale].of([i - 1 for i in index], seed, key)
        return float(
            np.interp(np.log(trial.fraction), np.log(bank.fractions), curve + self.noise * luck)
        )

    def _seed_of(self, trial: Trial) -> tuple[int, int]:
        """(The table's seed for a trial's, a key for what else is drawn with it)."""
        salt = 0 if self.draw is None else mix(self.draw + 1)
        key = mix(salt ^ (trial.seed + (trial.scale << 40)))
        if self.draw is None and trial.seed in self.bank.seeds:
            return self.bank.seeds.index(trial.seed), key
        return key % len(self.bank.seeds), key
