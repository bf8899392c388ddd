# SPDX-License-Identifier: Apache-2.0
"""Trains ideas of the bank together, to see what luck a combined arm has: its own, or its ideas'?

    python scripts/idea_combinations.py TABLE.csv BANK.csv [--config FILE.gin] [--count 12] [--seeds 8]

On a seed, an arm differs from the baseline by its effect and by luck: its difference less the mean over
seeds.  A replay of the bank draws the luck of several ideas together from a field (jaxlm/research/luck.py),
of which this is the measure.  Of arms of 2, 4 and 8 random ideas, --count each, and of each with one idea
more, it prints in thousandths of a nat: the luck they had; the part that the field foretells from the luck
of each idea alone, which BANK.csv has; what is left, over what the field has left (FRESH); and how much the
one idea more changed, over its luck alone.  Rows of TABLE as in the bank, the idea being `a + b`; the same
command goes on where it stopped, TABLE.json says what made it.
"""

import argparse
import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxlm.cli.arms import merged
from jaxlm.cli.gin_edge import load
from jaxlm.config import RunConfig
from jaxlm.core.canonical import write_json_atomic
from jaxlm.core.errors import ConfigError, DataError, UserError
from jaxlm.research import lean_runs
from jaxlm.research.bank import COLUMNS, Bank, read_bank
from jaxlm.research.jobs import with_seed
from jaxlm.research.luck import Luck
from jaxlm.research.plan import Setting
from jaxlm.research.records import BASELINE, JOIN
from jaxlm.telemetry.display import make_display
from jaxlm.telemetry.readable import aligned
from jaxlm.train.run_dir import read_json
from scripts.idea_bank import CONFIG, Key, as_text, curves, differences, facts, read_runs, settings

HARM = 0.1  # nats: `harmless` arms have no idea that is worse
SIZES = (2, 4, 8)  # ideas of an arm
Finals = dict[tuple[str, int], float]  # (idea, seed) -> last loss
Lucks = dict[frozenset[str], tuple[np.ndarray, list[int]]]  # arm -> luck by seed, seeds


def finals(table: Path) -> Finals:
    """Of scale 0, without runs that did not complete."""
    ends = {
        (i, seed): curve[-1][1] for (i, scale, seed), curve in read_runs(table).items() if not scale
    }
    return {key: loss for key, loss in ends.items() if np.isfinite(loss)}


def combinations(arms: dict[str, Setting], config: str, count: int, draw: int) -> Iterator[Setting]:
    """`count` arms of every size, of random ideas that can be set at once; then each with one more."""
    rng = random.Random(draw)
    found: dict[tuple[str, ...], Setting] = {}
    for size in SIZES:
        while sum(len(names) == size for names in found) < count:
            names = tuple(sorted(rng.sample(sorted(arms), size)))
            made = together(arms, names, config)
            if made and names not in found:
                found[names] = made
    yield from found.values()
    for names in found:
        grown = None
        while grown is None:
            more = rng.choice(sorted(set(arms) - set(names)))
            grown = together(arms, tuple(sorted((*names, more))), config)
        yield grown


def together(arms: dict[str, Setting], names: tuple[str, ...], config: str) -> Setting | None:
    """None for ideas that exclude each other."""
    changes = merged(arms[name].changes for name in names)
    try:
        made = changes and load([config], [f"{k} = {v}" for k, v in changes.items()])
    except ConfigError:  # each works alone, not together
        return None
    return Setting(JOIN.join(names), changes, made) if changes and made else None


def train(args: argparse.Namespace, alone: Finals) -> None:
    """The runs that are missing.  Raises DataError for a table that other code or machines began."""
    seeds = range(args.seeds)
    whole = [s for s in settings(0, (), args.config) if all((s.name, k) in alone for k in seeds)]
    arms = {s.name: s for s in whole if s.name != BASELINE}
    drawn = list(combinations(arms, args.config, args.count, args.draw))
    done = read_runs(args.table)
    todo: list[tuple[Key, RunConfig]] = [
        ((s.name, 0, seed), with_seed(s.config, seed))
        for s in drawn
        for seed in seeds
        if (s.name, 0, seed) not in done
    ]
    if not todo:  # the table speaks for itself, whatever the code is today
        return
    now, facts_path = (
        facts({(s.name, 0): s for s in (whole[0], *drawn)}),
        args.table.with_suffix(".json"),
    )
    if done and (wrong := differences(read_json(facts_path) or {}, now)):
        raise DataError(f"{args.table} was begun with {wrong[0]}; give another file")
    write_json_atomic(facts_path, now)
    head = ",".join(COLUMNS) + "\n"
    args.table.write_text(head + as_text(done.items()), encoding="utf-8")
    with args.table.open("a", encoding="utf-8") as f, make_display() as display:
        for count, (key, curve) in enumerate(curves(todo), start=1):
            f.write(as_text([(key, curve)]))
            f.flush()
            display.progress("combinations", count / len(todo), key[0])


def own(losses: np.ndarray) -> np.ndarray:
    """Less the mean over seeds, the last axis."""
    return losses - losses.mean(axis=-1, keepdims=True)


def luck(together: Finals, bank: Bank) -> Lucks:
    """Of each arm that completed: its luck, and on which seeds."""
    found = {}
    base_S = bank.losses[0][0, :, -1]
    for arm in dict.fromkeys(name for name, _ in together):
        seeds = sorted(seed for name, seed in together if name == arm)
        losses = np.array([together[arm, seed] for seed in seeds])
        found[frozenset(arm.split(JOIN))] = own(losses - base_S[seeds]), seeds
    return found


def fresh(found: Lucks, bank: Bank) -> tuple[float, float, float]:
    """Root mean squares over arms: (luck, the part that the field foretells, what is left over what the
    field has left)."""
    field, squares = Luck(bank.losses[0]), np.zeros(4)
    for ideas, (luck_S, seeds) in found.items():
        weights, left = field.foretold([bank.ideas.index(idea) - 1 for idea in ideas])
        expected_S = own(weights @ field.alone[:, seeds, -1])
        rest = ((luck_S - expected_S) ** 2).sum() / (len(seeds) - 1)
        squares += [np.mean(luck_S**2), np.mean(expected_S**2), rest, left]
    whole, expected, rest, left = squares / len(found)
    return float(np.sqrt(whole)), float(np.sqrt(expected)), float(np.sqrt(rest / left))


def step(found: Lucks, size: int, bank: Bank) -> float:
    """Luck of one idea more beside `size` others over its luck alone; nan where no two such arms ran."""
    alone, seen, expected = own(bank.losses[0][:, :, -1] - bank.losses[0][0, :, -1]), 0.0, 0.0
    pairs = itertools.product((ideas for ideas in found if len(ideas) == size), found)
    for smaller, larger in ((a, b) for a, b in pairs if a < b and len(b) == size + 1):
        (before_S, seeds), (after_S, after_seeds) = found[smaller], found[larger]
        (more,) = larger - smaller
        if seeds == after_seeds:
            seen += float(((after_S - before_S) ** 2).sum())
            expected += float((own(alone[bank.ideas.index(more), seeds]) ** 2).sum())
    return float(np.sqrt(seen / expected)) if expected else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("bank", type=Path)
    parser.add_argument("--config", default=CONFIG, metavar="FILE", help="the bank's")
    parser.add_argument("--count", type=int, default=12, help="arms of each size")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--draw", type=int, default=0, help="which arms (default %(default)s)")
    args = parser.parse_args()
    try:
        alone = finals(args.bank)
        train(args, alone)
    except UserError as error:
        print(f"idea_combinations.py: {error}", file=sys.stderr)
        return error.exit_code
    bank = read_bank(args.bank).by_scale()[0]
    found = luck(finals(args.table), bank)
    rows: list[tuple[str, ...]] = [
        ("ideas", "arms", "luck", "foretold", "left / field", "step / alone")
    ]
    harmless = lambda ideas: all(bank.effect(idea)[0] < HARM for idea in ideas)
    groups = {str(n): (n, lambda ideas, n=n: len(ideas) == n) for n in sorted(set(map(len, found)))}
    groups |= {"all": (None, lambda _: True), "harmless": (None, harmless)}
    for name, (size, belongs) in groups.items():
        some = {ideas: told for ideas, told in found.items() if belongs(ideas)}
        if some:
            whole, expected, rest = fresh(some, bank)
            told = (f"{1e3 * whole:.1f}", f"{1e3 * expected:.1f}", f"{rest:.2f}")
            more = f"{step(found, size, bank):.2f}" if size else ""
            rows.append((name, str(len(some)), *told, more))
    print("\n".join(aligned(rows)))
    return 0


if __name__ == "__main__":
    lean_runs.pin()
    sys.exit(main())
