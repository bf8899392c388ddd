# SPDX-License-Identifier: Apache-2.0
"""Policies side by side, at equal compute, in worlds whose truth is known.

Every policy gets the same worlds, ideas in the same order, and the same budget in full baseline runs;
scored is what its final choice is truly worth.  Worlds are simulated (research/simulate.py) or a bank
of real ideas (research/bank.py).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from jaxlm.research.bank import Bank, BankWorld
from jaxlm.research.policies.base import WITHIN_SEED, Knowledge, Purse, drive
from jaxlm.research.policies.catalogue import RIVAL, policy
from jaxlm.research.simulate import (
    SIGMAS,
    WORLDS,
    SimulatedWorld,
    World,
    WorldSpec,
    marginal,
)
from jaxlm.research.stats.noise import Noise
from jaxlm.research.stats.shrink import Prior
from jaxlm.telemetry.page import page
from jaxlm.telemetry.readable import aligned, markup
from jaxlm.telemetry.svg import Series, line_chart

HEADER = (
    "world", "noise", "budget", "policy", "true gain", "/ greedy", "of all", "false keeps", "power",
    "claimed / true", "compute",
)  # fmt: skip
SEEDS_APART = 1 << 20  # between worlds: more than a policy uses
DRAWN = ("adaptive", "greedy", "halving", "early-stop", "factorial", "prune-and-confirm")
Progress = Callable[[str, float | None, str], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy in one kind of world at one budget, over `count` worlds; gains in nats.

    power: truly good ideas that are kept, per good idea among as many as the budget has runs; above
    1 for a policy that gets through more ideas than runs.
    """

    world: str
    sigma: float
    budget: float
    policy: str
    count: int
    gain: float
    gain_se: float
    ratio: float  # of true gains, to greedy's
    ratio_se: float
    of_all: float  # share of what all good ideas of the world are worth together
    false_discovery: float  # share of false keeps among all keeps
    power: float
    inflation: float  # claimed / true, of sums over worlds
    compute: float


def bench_simulated(
    names: Sequence[str], worlds: Iterable[str], budgets: Iterable[float], count: int,
    progress: Progress, *, sigmas: Sequence[float] = SIGMAS, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Every policy in every simulated world, at every noise and budget, over `count` draws."""
    rows = []
    todo = [(w, s, b) for w in worlds for s in sigmas for b in budgets]
    for i, (world, sigma, budget) in enumerate(todo):
        progress("policies", i / len(todo), f"{world}, noise {sigma:g}, budget {budget:g}")
        spec = dataclasses.replace(WORLDS[world], sigma=sigma)
        drawn = _draws(spec, count, seed)
        rows += _rows(names, world, sigma, budget, drawn, Knowledge(noise=Noise(sigma, 8)), seed)
    progress("policies", 1.0, "")
    return rows


def bench_bank(
    names: Sequence[str], bank: Bank, budgets: Iterable[float], count: int, progress: Progress,
    *, factors: Sequence[float] = (1.0,), prior: Prior | None = None, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Every policy on the idea bank, over `count` orders of its ideas and choices of seeds.

    Each scale of the bank is a world of its own.  factors: on the bank's noise.  prior: of the ideas'
    effects, as policies know it beforehand.
    """
    rows = []
    scales = bank.by_scale()
    todo = [(s, f, b) for s in range(len(scales)) for f in factors for b in budgets]
    for i, (scale, factor, budget) in enumerate(todo):
        world = f"idea bank, scale {scale}"
        sigma = scales[scale].noise().sigma * factor
        progress("policies", i / len(todo), f"{world}, noise {sigma:g}, budget {budget:g}")
        drawn: list[World] = [BankWorld(scales[scale], seed + k, factor) for k in range(count)]
        believed = prior or Prior(mean_effect=3 * sigma)  # as on real runs: the noise is known
        known = Knowledge(noise=Noise(WITHIN_SEED * sigma, 8), prior=believed, late=bank.late)
        rows += _rows(names, world, sigma, budget, drawn, known, seed)
    progress("policies", 1.0, "")
    return rows


def _draws(spec: WorldSpec, count: int, seed: int) -> list[World]:
    return [SimulatedWorld(spec, seed * 10_007 + k) for k in range(count)]


def _rows(
    names: Sequence[str], world: str, sigma: float, budget: float, drawn: list[World],
    knowledge: Knowledge, seed: int,
) -> list[Row]:  # fmt: skip
    scores = {
        name: np.array(
            [
                score(name, w, budget, (seed + k) * SEEDS_APART, knowledge)
                for k, w in enumerate(drawn)
            ]
        )
        for name in dict.fromkeys([RIVAL, *names])
    }
    there = float(np.mean([best(w) for w in drawn]))
    return [_row(name, world, sigma, budget, scores[name], scores[RIVAL], there) for name in names]


def best(world: World) -> float:
    """What all good ideas are worth together: no policy can gain more, where effects add up."""
    effects = np.array([world.truth(frozenset({idea})) for idea in world.ideas])
    return float(-effects[effects < 0].sum())


def score(
    name: str, world: World, budget: float, seed: int, knowledge: Knowledge
) -> tuple[float, float, int, int, int, float]:
    """(true gain, claimed gain, keeps, false keeps, good ideas in reach, compute) of one campaign."""
    purse = Purse(budget, knowledge.scale_costs)
    outcome = drive(policy(name)(world.ideas, budget, seed, knowledge), world.run, purse)
    false = sum(marginal(world, idea, outcome.kept) >= 0 for idea in outcome.kept)
    reach = world.ideas[: max(1, int(budget))]
    good = sum(world.truth(frozenset({idea})) < 0 for idea in reach)
    gain = -world.truth(outcome.kept)
    return gain, outcome.claimed_gain, len(outcome.kept), false, good, purse.spent


def _row(
    name: str, world: str, sigma: float, budget: float, scores: np.ndarray, rival: np.ndarray,
    there: float,
) -> Row:  # fmt: skip
    gain, claimed, keeps, false, good, spent = scores.T
    count = len(gain)
    root = math.sqrt(count)
    ratio = gain.mean() / rival[:, 0].mean() if rival[:, 0].mean() > 0 else math.nan
    return Row(
        world, sigma, budget, name, count,
        gain=float(gain.mean()),
        gain_se=float(gain.std(ddof=1)) / root if count > 1 else math.nan,
        ratio=float(ratio),
        ratio_se=_ratio_se(gain, rival[:, 0], float(ratio)),
        of_all=float(gain.mean()) / there if there else math.nan,
        false_discovery=float(false.sum() / max(1, keeps.sum())),
        power=float((keeps - false).sum() / max(1, good.sum())),
        inflation=float(claimed.sum() / gain.sum()) if gain.sum() else math.nan,
        compute=float(spent.mean()),
    )  # fmt: skip


def _ratio_se(gain: np.ndarray, rival: np.ndarray, ratio: float) -> float:
    """Delta method for a ratio of means over the same worlds."""
    if len(gain) < 2 or not math.isfinite(ratio):
        return math.nan
    return float((gain - ratio * rival).std(ddof=1) / math.sqrt(len(gain)) / rival.mean())


def table(rows: list[Row]) -> Iterator[str]:
    """Lines for people, columns aligned; gains in thousandths of a nat, with standard errors."""
    return aligned([HEADER, *map(_cells, rows)])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.world,
        f"{row.sigma * 1e3:.2f}e-3",
        f"{row.budget:g}",
        row.policy,
        f"{row.gain * 1e3:.2f} +- {row.gain_se * 1e3:.2f}",
        f"{row.ratio:.2f} +- {row.ratio_se:.2f}",
        f"{row.of_all:.0%}",
        f"{row.false_discovery:.0%}",
        f"{row.power:.2f}",
        f"{row.inflation:.2f}",
        f"{row.compute:.1f}",
    )


def curves(rows: list[Row]) -> str:
    """A page: true gain over the budget, and share of false keeps, per world and noise."""
    figures = []
    for world, sigma in dict.fromkeys((row.world, row.sigma) for row in rows):
        here = [row for row in rows if (row.world, row.sigma) == (world, sigma)]
        title = f"{world}, noise {sigma * 1e3:.2f}e-3"
        for label, value in (
            ("true gain, nats / 1000", lambda row: row.gain * 1e3),
            ("false keeps, share", lambda row: row.false_discovery),
        ):
            series = [
                Series(
                    name, [(row.budget, value(row)) for row in here if row.policy == name], color
                )
                for color, name in enumerate(DRAWN)
                if any(row.policy == name for row in here)
            ]
            chart = line_chart(
                series, title=title, x_label="budget, runs", y_label=label, from_zero=True
            )
            figures.append(f'<div class="box">{chart}</div>')
    text = markup("\n".join(table(rows)))
    body = f'<h1>Policies</h1><div class="grid">{"".join(figures)}</div><pre>{text}</pre>'
    return page("Policies · jaxlm", body)
