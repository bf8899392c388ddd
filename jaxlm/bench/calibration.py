# SPDX-License-Identifier: Apache-2.0
"""Do verdicts err as rarely as they say?  A/A comparisons, in which no arm differs from the baseline.

Simulated ones by the thousand, in every way in which `jaxlm ablate` judges; and real ones, between
disjoint groups of seeds of one config, from a table of runs (research/bank.py).  A verdict where there
is nothing to find is a false positive.  Peeking: a look after every seed, until the first verdict.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxlm.research.bank import Bank
from jaxlm.research.stats.noise import Noise, moderate
from jaxlm.research.stats.shrink import Floats
from jaxlm.research.stats.verdict import Rules, judge
from jaxlm.telemetry.readable import aligned

SEEDS = 4
REAL_SEEDS = 3  # of each side: runs are dear
MOST = 10  # seeds of a comparison that is looked at again and again
EARLIER = 8  # arms of earlier protocols, where their noise is known
UNEQUAL = 0.4  # sd of ln sd of paired differences among arms (docs: a small pilot had 0.25)
ARMS = 12
ALPHA = 0.05
HEADER = ("comparisons", "number", "false positives", "at most", "95% intervals cover")


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of comparison."""

    kind: str
    count: int
    false: int  # comparisons with a verdict
    covered: float  # intervals that hold the truth, at every look; shares of a comparison's arms

    @property
    def rate(self) -> float:
        return self.false / self.count

    @property
    def most(self) -> float:
        """The rate that 0.05 and two standard errors of so many comparisons allow."""
        return ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / self.count)

    @property
    def is_fit(self) -> bool:
        return self.rate <= self.most


Draw = Callable[[np.random.Generator], tuple[list[Floats], Noise | None]]  # differences of arms


def bench_simulated(count: int, seed: int = 0) -> list[Row]:
    """Of differences drawn from a normal."""
    kinds: dict[str, tuple[Draw, Rules, bool]] = {
        f"{SEEDS} seeds": (_draw(1, SEEDS), Rules(), False),
        f"{SEEDS} seeds, noise of earlier arms": (_draw(1, SEEDS, 0.0), Rules(), False),
        f"{SEEDS} seeds, earlier arms of other noise": (_draw(1, SEEDS, UNEQUAL), Rules(), False),
        f"2 to {MOST} seeds, peeking": (_draw(1, MOST), Rules(test="sequence"), True),
        f"2 to {MOST} seeds, peeking, earlier arms of other noise": (
            _draw(1, MOST, UNEQUAL), Rules(test="sequence"), True,
        ),
        f"any keep among {ARMS} arms": (_draw(ARMS, SEEDS), Rules(), False),
        "no worse than 1 sigma, where it is": (
            _shifted(_draw(1, SEEDS), 1.0), Rules(margin=1.0), False,
        ),
    }  # fmt: skip
    return [
        _row(kind, draw, rules, peeks, count, np.random.default_rng([seed, i]))
        for i, (kind, (draw, rules, peeks)) in enumerate(kinds.items())
    ]


def bench_real(bank: Bank, seeds: int = REAL_SEEDS, seed: int = 0) -> list[Row]:
    """Groups of `seeds` runs against others of the same config, each run in one comparison only."""
    rng = np.random.default_rng(seed)
    found: list[Floats] = []
    for losses in bank.losses[0][:, :, -1]:
        whole = rng.permutation(losses[~np.isnan(losses)])
        groups = whole[: whole.size // (2 * seeds) * 2 * seeds].reshape(-1, 2, seeds)
        found += list(groups[:, 0] - groups[:, 1])
    rows = []
    for kind, rules, peeks in (
        (f"real, {seeds} seeds", Rules(), False),
        (f"real, 2 to {seeds} seeds, peeking", Rules(test="sequence"), True),
    ):
        results = [_compare([d], None, rules, peeks) for d in found]
        false, covered = (sum(column) for column in zip(*results, strict=True))
        rows.append(Row(kind, len(found), false, covered))
    return rows


def _draw(arms: int, seeds: int, unequal: float | None = None) -> Draw:
    """unequal: sd of ln sd among the arms, with earlier ones known; None: nothing known."""

    def draw(rng: np.random.Generator) -> tuple[list[Floats], Noise | None]:
        spread = np.exp((unequal or 0.0) * rng.standard_normal(arms + EARLIER))
        earlier = [list(sd * rng.standard_normal(SEEDS)) for sd in spread[arms:]]
        known = None if unequal is None else moderate(earlier)
        return [sd * rng.standard_normal(seeds) for sd in spread[:arms]], known

    return draw


def _shifted(draw: Draw, by: float) -> Draw:
    def shifted(rng: np.random.Generator) -> tuple[list[Floats], Noise | None]:
        arms, known = draw(rng)
        return [d + by for d in arms], known

    return shifted


def _row(
    kind: str, draw: Draw, rules: Rules, peeks: bool, count: int, rng: np.random.Generator
) -> Row:
    truth = rules.margin or 0.0
    results = [_compare(*draw(rng), rules, peeks, truth) for _ in range(count)]
    return Row(kind, count, sum(f for f, _ in results), sum(c for _, c in results))


def _compare(
    arms: Sequence[Floats], known: Noise | None, rules: Rules, peeks: bool, truth: float = 0.0
) -> tuple[bool, float]:
    """(whether any arm got a verdict; share of arms whose intervals, at every look, hold the truth).

    Of several arms, as of simplifications, only a keep counts as a verdict.
    """
    total = arms[0].size
    holds = np.ones(len(arms), bool)
    counts = {"keep"} if len(arms) > 1 or rules.margin is not None else {"keep", "discard"}
    for n in range(2, total + 1) if peeks else [total]:
        losses: Mapping[str, dict[int, float]] = {
            "baseline": dict.fromkeys(range(n), 0.0),
            **{f"arm{i}": dict(enumerate(d[:n])) for i, d in enumerate(arms)},
        }
        verdicts = judge(losses, "baseline", rules, known).values()
        holds &= [v.low <= truth <= v.high for v in verdicts]
        if any(v.decision in counts for v in verdicts):
            return True, float(holds.mean())
    return False, float(holds.mean())


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines for people, columns aligned."""
    return aligned([HEADER, *map(_cells, rows)])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.kind,
        f"{row.count:,}",
        f"{row.rate:.1%}",
        f"{row.most:.1%}" + ("" if row.is_fit else "  EXCEEDED"),
        f"{row.covered / row.count:.1%}",
    )
