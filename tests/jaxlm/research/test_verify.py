# SPDX-License-Identifier: Apache-2.0
"""Forged ledgers whose every hash fits, and run directories that hold something else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlm.bench.attacks.ledgers import edited, forge
from jaxlm.cli.main import main
from jaxlm.research.ledger import Ledger, Record
from jaxlm.research.verify import verify
from tests.e2e.workshop import furnish
from tests.jaxlm.research.fake import FakeWorkers

LEDGER = Ledger(Path("research/ledger.jsonl"))
BASE = ["ablate", "base.gin", "--set", "TrainConfig.num_steps=60", "--vary", "OptimConfig.b1=[0.8]"]


@pytest.fixture(autouse=True)
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    FakeWorkers({("b1", 0.8): -0.1}).install(monkeypatch)
    assert main(BASE) == 0
    assert problems() == []


def problems() -> list[str]:
    return verify(LEDGER, Path("research"))


def at(records: list[Record], arm: str, seed: int) -> int:
    """Place of a run of the screen."""
    keys = [(r.body.get("arm"), r.body.get("seed")) for r in records]
    return len(keys) - 1 - keys[::-1].index((arm, seed))


def swapped(records: list[Record], *names: str) -> list[Record]:
    """Fields of seeds 2 and 3 of the arm, each with the other's."""
    i, j = (at(records, "b1=0.8", seed) for seed in (2, 3))
    a, b = records[i], records[j]
    found = list(records)
    found[i] = edited(a, **{name: b.body[name] for name in names})
    found[j] = edited(b, **{name: a.body[name] for name in names})
    return found


def better(records: list[Record]) -> list[Record]:
    """One run's number made better everywhere it stands."""
    i = at(records, "b1=0.8", 3)
    body = records[i].body
    lower = body["metric"] - 0.05
    evaluation = body["evaluation"] | {"eval/bpb": lower}
    return [
        *records[:i],
        edited(records[i], metric=lower, evaluation=evaluation),
        *records[i + 1 :],
    ]


def better_baseline(records: list[Record]) -> list[Record]:
    """A number that the pilot has recorded already."""
    i = at(records, "baseline", 1)
    body = records[i].body
    evaluation = body["evaluation"] | {"eval/bpb": 9.0}
    return [*records[:i], edited(records[i], metric=9.0, evaluation=evaluation), *records[i + 1 :]]


def verdict(records: list[Record]) -> list[Record]:
    last = records[-1]
    told = last.body["verdicts"][0] | {"effect": -1.0}
    return [*records[:-1], edited(last, verdicts=[told])]


FORGERIES: dict[str, tuple[Callable[[list[Record]], list[Record]], str]] = {
    "swapped metrics": (lambda rs: swapped(rs, "metric"), "is not its evaluation's"),
    "stale evaluation": (lambda rs: swapped(rs, "metric", "evaluation"), "is of another run"),
    "better number": (better, "its verdicts do not follow from the runs"),
    "other number for a known run": (better_baseline, "was judged otherwise before"),
    "other verdict": (verdict, "its verdicts do not follow from the runs"),
    "exploratory label removed": (
        lambda rs: [*rs[:-1], edited(rs[-1], departures=["something"])],
        "do not follow",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_found(name: str) -> None:
    change, expected = FORGERIES[name]
    forge(LEDGER, change)
    assert any(expected in problem for problem in problems()), problems()


def test_a_directory_that_holds_an_earlier_run_is_found() -> None:
    first, second = (Path("research") / LEDGER.of_kind("run")[i]["directory"] for i in (0, -1))
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert any("are not those of run" in problem for problem in problems())


def test_a_checkpoint_that_was_not_judged_is_found() -> None:
    run = LEDGER.of_kind("run")[-1]
    (manifest,) = (Path("research") / run["directory"]).glob("checkpoints/*/manifest.json")
    manifest.write_text('{"other": 1}')
    assert any("is not the one that was judged" in problem for problem in problems())


def test_a_reading_that_a_stopped_run_never_had_is_found() -> None:
    assert main([*BASE, "--policy", "early-stop", "--budget", "20runs"]) == 0
    assert problems() == []
    stopped = next(r for r in LEDGER if r.body.get("status") == "stopped")
    forge(LEDGER, lambda rs: [
        edited(r, reading=r.body["reading"] + 1e-9) if r.seq == stopped.seq else r for r in rs
    ])  # fmt: skip
    assert any("does not say" in problem for problem in problems())
