# SPDX-License-Identifier: Apache-2.0
"""`jaxlm bench attacks`: every attack, honest patches, and the model check of the gates; one table.

An attack that nothing stopped and an honest patch that was refused make the command fail.  Where a
machine lacks the walls, code that nobody trusts is not run at all: such attacks say so, and count as
neither blocked nor passed.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from jaxlm.bench.attacks import diffs, gates, guests, honest, ledgers, runs, states, walls
from jaxlm.bench.attacks.attack import Attack, GotThroughError, planted, walls_stand
from jaxlm.bench.attacks.world import World, furnish
from jaxlm.research.desk.desk import Load
from jaxlm.research.desk.quoting import plain
from jaxlm.research.sandbox import sandbox
from jaxlm.telemetry.readable import aligned

BLOCKED, PASSED, HOLDS = "blocked", "passed", "holds"
GOT_THROUGH, REFUSED, FAILS = "GOT THROUGH", "REFUSED", "FAILS"
NOT_RUN = "refused to run"
FAITH = {"model check": (HOLDS, FAILS), "honest patch": (PASSED, REFUSED)}  # else an attack
FAITH |= {"honest guest": (PASSED, REFUSED), "honest, trained": (PASSED, REFUSED)}
WIDTH = 76  # of what is told
Progress = Callable[[str, float, str], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one attack."""

    target: str
    name: str
    verdict: str
    told: str  # by what it was blocked, or how it got through


def bench_attacks(load: Load, trained: int, progress: Progress) -> list[Row]:
    """load: reads gin; trained: how many honest patches are also trained and judged."""
    with tempfile.TemporaryDirectory(prefix="jaxlm-attacks-") as name:
        folder = Path(name).resolve()
        with planted(folder):
            todo = all_attacks(furnish(folder / "world", load), trained)
            return list(_run_all(todo, folder, progress))


def all_attacks(world: World, trained: int) -> list[Attack]:
    """In the order of the table."""
    return [
        *walls.attacks(), *diffs.attacks(world), *guests.attacks(), *runs.attacks(world),
        *gates.attacks(world), *ledgers.attacks(world), *_model_checks(),
        *honest.honest(world, trained),
    ]  # fmt: skip


def _model_checks() -> Iterator[Attack]:
    for name in states.ROADS:
        check = partial(_counted, partial(states.check_road, name), "sequences of steps")
        yield Attack(target="model check", name=f"two steps more: {name}", run=check)
    for has_code in (False, True):
        name = "all that can be reached, " + ("with code" if has_code else "without code")
        check = partial(_counted, partial(states.check_reachable, has_code), "conditions")
        yield Attack(target="model check", name=name, run=check)


def _counted(check: Callable[[], int], what: str, folder: Path) -> str:
    return f"{check():,} {what}"


def _run_all(todo: Sequence[Attack], folder: Path, progress: Progress) -> Iterator[Row]:
    for i, attack in enumerate(todo):
        progress("attacks", i / len(todo), f"{attack.target}: {attack.name}")
        own = folder / f"{i:03d}"
        own.mkdir()
        yield run_one(attack, own)
    progress("attacks", 1.0, f"{len(todo)}")


def run_one(attack: Attack, folder: Path) -> Row:
    """In its own empty folder."""
    well, ill = FAITH.get(attack.target, (BLOCKED, GOT_THROUGH))
    if attack.needs_walls and not walls_stand():
        told = f"this machine has {sandbox.level()}"
        return Row(attack.target, attack.name, NOT_RUN, told)
    try:
        verdict, told = well, attack.run(folder)
    except GotThroughError as e:
        verdict, told = ill, str(e)
    return Row(attack.target, attack.name, verdict, plainly(told, folder))


def plainly(told: str, folder: Path) -> str:
    """One printable line, without the folders of this run: part of it is what an attack said."""
    return plain(told.replace(f"{folder}/", "").replace(f"{folder.parent}/", ""), WIDTH)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines for people, columns aligned; the last one counts."""
    cells = [("what is attacked", "attack", "verdict", "by what")]
    cells += [(r.target, r.name, r.verdict, r.told) for r in rows]
    yield from aligned(cells)
    yield ""
    yield summary(rows)


def summary(rows: Sequence[Row]) -> str:
    """Counts of verdicts, the bad ones first."""
    bad = [f"{count(rows, v)} {v}" for v in (GOT_THROUGH, REFUSED, FAILS) if count(rows, v)]
    attacks = [r for r in rows if r.target not in FAITH]
    honest = [r for r in rows if r.target in FAITH and r.target != "model check"]
    checks = [r for r in rows if r.target == "model check"]
    good = [
        f"{count(rows, BLOCKED)} of {len(attacks)} attacks blocked",
        f"{count(rows, PASSED)} of {len(honest)} honest patches and guests passed",
        f"{count(rows, HOLDS)} of {len(checks)} model checks hold",
    ]
    left = count(rows, NOT_RUN)
    return "; ".join([*bad, *good, *([f"{left} refused to run: no walls"] if left else [])])


def count(rows: Sequence[Row], verdict: str) -> int:
    return sum(row.verdict == verdict for row in rows)


def exit_code(rows: Sequence[Row]) -> int:
    """1 where something got through or was refused; 2 where something could not be tried; else 0."""
    if any(count(rows, verdict) for verdict in (GOT_THROUGH, REFUSED, FAILS)):
        return 1
    return 2 if count(rows, NOT_RUN) else 0
