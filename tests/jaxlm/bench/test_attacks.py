# SPDX-License-Identifier: Apache-2.0
"""Every attack is blocked, every honest patch passes; and the suite tells where that is not so."""

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxlm.bench.attacks import ledgers, suite
from jaxlm.bench.attacks.attack import Attack, planted, walls_stand
from jaxlm.bench.attacks.world import World, furnish
from jaxlm.cli.main import main
from jaxlm.research.desk import gates
from jaxlm.research.desk.desk import Desk
from jaxlm.research.patch import diff, host, judge
from jaxlm.research.sandbox import sandbox
from tests.jaxlm.research.desk.workshop import read

ELSEWHERE = World(Path("nowhere"), read)  # for names alone
TRAINED = "honest, trained"


def name_of(attack: Attack) -> str:
    return f"{attack.target}: {attack.name}"


NAMES = [name_of(a) for a in suite.all_attacks(ELSEWHERE, trained=26)]
DEAR = ("the evaluator", TRAINED)  # real models are trained
DEAR += ("honest patch", "training: guest")  # two seconds of imports each: some thirty of them
LET_IN = ("the gates: run without", "the gates: budget bypass: two")  # then they train
QUICK = ("honest patch: leaky square", "training: guest: patched clock")  # one of each kind


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("attacks")
    with planted(folder):
        yield furnish(folder / "world", read)


def tried(name: str, world: World, folder: Path) -> suite.Row:
    """One attack of the suite, by its name."""
    found = {name_of(a): a for a in suite.all_attacks(world, trained=26)}
    own = folder / "own"
    own.mkdir()
    return suite.run_one(found[name], own)


def marked(names: Sequence[str], dear: tuple[str, ...] = DEAR) -> list[Any]:
    slow = lambda name: [pytest.mark.slow] if name.startswith(dear) and name not in QUICK else []
    return [pytest.param(name, marks=slow(name)) for name in names if not name.startswith(TRAINED)]


@pytest.mark.parametrize("name", marked(NAMES))
def test_an_attack_is_blocked_and_an_honest_patch_passes(
    name: str, world: World, tmp_path: Path
) -> None:
    row = tried(name, world, tmp_path)
    if row.verdict == suite.NOT_RUN:
        pytest.skip(row.told)
    assert row.verdict in (suite.BLOCKED, suite.PASSED, suite.HOLDS), row


def test_there_are_as_many_as_promised_and_each_has_a_name_of_its_own() -> None:
    targets = [name.partition(": ")[0] for name in NAMES]
    assert len(set(NAMES)) == len(NAMES)
    assert sum(target not in suite.FAITH for target in targets) >= 40
    assert targets.count("honest patch") >= 25
    told = " ".join(NAMES)
    for kind in (
        "edited evaluator", "validation data", "shrunk evaluation", "NaN metric", "printed fake result",
        "stale result", "patched clock", "seed shopping", "extra steps", "fork bomb", "disk filler",
        "network", "environment", "symbolic link", "early exit", "pickle payload", "edited ledger",
        "forged approval", "approval for another hash", "budget bypass",
    ):  # fmt: skip
        assert kind in told, kind


def without_walls(
    command: Sequence[str], folder: Path, readable: Sequence[Path], limits: sandbox.Limits,
    is_weaker_allowed: bool = False, talk: sandbox.Talk | None = None,
) -> sandbox.Result:  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return sandbox.Result(done.returncode, done.stdout + done.stderr, None, "none", 0.0)


def lenient(*_: Any) -> None:
    """A check that finds nothing."""


# what is switched off, and what must get through then
HOLES: dict[str, tuple[object, str, object]] = {
    "files and keys: read: environment": (sandbox, "run", without_walls),
    "files and keys: read: validation data": (sandbox, "run", without_walls),
    "files and keys: read: the key of approvals": (sandbox, "run", without_walls),
    "files and keys: read: home": (sandbox, "run", without_walls),
    "files and processes: change: the evaluator": (sandbox, "run", without_walls),
    "the machine: network by TCP": (sandbox, "run", without_walls),
    "the machine: network by UDP": (sandbox, "run", without_walls),
    "the tree: patch: the ledger": (Desk, "paths", lambda desk: ("jaxlm/", diff.TESTS)),
    "the tree: patch: memorised text": (diff, "MOST_LITERAL", 10_000),
    "training: guest: extra steps on the same data": (host, "LEAST_S", 1e9),
    "the score: guest: twice probability 1": (judge, "NORMAL", 1e9),
    "the score: guest: answers by chance": (judge, "SAME", {"float32": 1e9}),
    "the gates: forged approval": (gates, "is_signed", lambda record, key: True),
    "the gates: run without approval": (gates, "_start_obstacle", lenient),
    "the gates: budget bypass: two drafts": (gates, "_start_obstacle", lenient),
    "the ledger: edited protocol": (ledgers, "verify", lambda *_: []),
    "the ledger: stale result reused": (ledgers, "verify", lambda *_: []),
}


@pytest.mark.parametrize("name", marked(tuple(HOLES), DEAR + LET_IN))
def test_where_a_defence_is_switched_off_the_attack_gets_through(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not walls_stand():
        pytest.skip("this machine lacks walls")
    where, what, instead = HOLES[name]
    monkeypatch.setattr(where, what, instead)
    row = tried(name, world, tmp_path)
    assert row.verdict == suite.GOT_THROUGH, row
    assert suite.exit_code([row]) == 1
    assert "1 GOT THROUGH" in suite.summary([row])


def test_an_honest_patch_that_is_refused_shows(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diff, "MOST_BYTES", 10)
    row = tried("honest patch: mish", world, tmp_path)
    assert row.verdict == suite.REFUSED and suite.exit_code([row]) == 1


@pytest.mark.parametrize("gate", ["_consent_obstacle", "_start_obstacle", "_adoption_obstacle"])
def test_the_model_check_finds_a_gate_that_stands_open(
    gate: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, gate, lenient)
    row = tried("model check: two steps more: plain", world, tmp_path)
    assert row.verdict == suite.FAILS and suite.exit_code([row]) == 1


@pytest.mark.parametrize("stands", ["none", "landlock", "namespaces"])
def test_without_walls_nothing_is_run_and_nothing_counts_as_blocked(
    stands: sandbox.Level, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "level", lambda: stands)
    monkeypatch.setattr(sandbox, "run", lambda *_: pytest.fail("code was run"))
    rows = []
    for i, attack in enumerate(a for a in suite.all_attacks(world, 2) if a.needs_walls):
        (tmp_path / str(i)).mkdir()
        rows.append(suite.run_one(attack, tmp_path / str(i)))
    assert {row.verdict for row in rows} == {suite.NOT_RUN} and len(rows) > 40
    assert suite.exit_code(rows) == 2
    assert suite.summary(rows).endswith(f"{len(rows)} refused to run: no walls")


def test_a_table_has_a_row_for_each_attack_and_ends_with_counts(tmp_path: Path) -> None:
    loud = Attack(target="the gates", name="one", run=lambda folder: f"{folder}/x\x1b[2J\0\n" * 99)
    rows = [
        suite.run_one(loud, tmp_path),
        suite.Row("honest patch", "two", suite.PASSED, "fine"),
    ]
    lines = list(suite.table(rows))
    assert len(lines) == 5 and max(map(len, lines)) < 160
    assert all(line.isprintable() for line in lines) and str(tmp_path) not in lines[1]
    assert lines[-1].startswith("1 of 1 attacks blocked; 1 of 1 honest patches and guests passed")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_command_runs_them_all_and_leaves_nothing_behind(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "attacks", "--trained", "1"]) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert "attacks blocked" in last and not last.startswith("0"), last
    assert list(tmp_path.iterdir()) == []


def test_a_negative_number_of_trained_patches_is_one_line(capfd: Any) -> None:
    assert main(["bench", "attacks", "--trained", "-1"]) == 2
    assert capfd.readouterr().err.startswith("jaxlm: error: --trained must be >= 0")
