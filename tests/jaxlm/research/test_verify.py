# SPDX-License-Identifier: Apache-2.0
"""Forged ledgers whose every hash fits, and run directories that hold something else."""

import dataclasses
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxlm.bench.attacks.ledgers import edited, forge
from jaxlm.cli.main import main
from jaxlm.research import runner
from jaxlm.research.ledger import Ledger, Record
from jaxlm.research.verify import verify
from tests.e2e.workshop import furnish, refused
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


def test_a_changed_byte_of_a_judged_checkpoint_is_found() -> None:
    """In any of its files: the manifest that was judged has their checksums."""
    run = LEDGER.of_kind("run")[-1]
    (params,) = (Path("research") / run["directory"]).glob("checkpoints/*/state/params")
    whole = params.read_bytes()
    params.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert any("state/params is damaged" in problem for problem in problems())
    params.unlink()
    assert any("state/params is missing" in problem for problem in problems())
    params.write_bytes(whole)
    earlier = shutil.copytree(params.parents[1], params.parents[2] / "00000001")
    assert problems() == []
    (earlier / "state" / "params").write_text("other")
    assert any("00000001/state/params is damaged" in problem for problem in problems())


def renamed(value: Any, draw: random.Random) -> Any:
    """JSON with the case of one letter of one key changed, somewhere."""
    if isinstance(value, dict) and value:
        key = draw.choice(sorted(value))
        if draw.random() < 0.5:
            return {k.swapcase() if k == key else k: v for k, v in value.items()}
        return {k: renamed(v, draw) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value:
        at = draw.randrange(len(value))
        return [*value[:at], renamed(value[at], draw), *value[at + 1 :]]
    return draw.choice([value, None, [], {}, "x", -1])


def test_an_edit_anywhere_is_a_problem_and_one_line_for_every_reader(
    capfd: pytest.CaptureFixture[str],
) -> None:
    draw, whole = random.Random(0), LEDGER.path.read_bytes()
    keys = [m.start() + 1 for m in re.finditer(rb'"[a-z_]+":', whole)]
    for at in [*draw.sample(keys, 60), *draw.sample(range(len(whole)), 60)]:
        bit = 32 if at in keys else 1 << draw.randrange(8)
        LEDGER.path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        assert problems(), whole[at - 20 : at + 20]
    for command in (["research", "log"], ["research", "show", "1"], BASE):
        assert "`jaxlm research verify` says more" in refused(command, capfd)


def test_nothing_is_trained_after_a_ledger_that_lost_its_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = LEDGER.path.read_bytes().splitlines(keepends=True)
    LEDGER.path.write_bytes(b"".join(lines[:-3]))  # the protocol that is asked for is still there
    monkeypatch.setattr(runner, "run_jobs", lambda *_: pytest.fail("a worker was started"))
    shutil.rmtree("research/runs")
    head = LEDGER.head_path.read_bytes()
    assert f"tells of {len(lines)} records" in refused(BASE, capfd)
    assert LEDGER.head_path.read_bytes() == head


def test_a_field_of_another_name_or_type_is_no_traceback_though_every_hash_fits() -> None:
    draw, honest = random.Random(1), list(LEDGER)
    for _ in range(150):
        at = draw.randrange(len(honest))
        changed = dataclasses.replace(honest[at], body=renamed(honest[at].body, draw))
        forge(LEDGER, lambda _, at=at, new=changed: [*honest[:at], new, *honest[at + 1 :]])
        problems()


@pytest.mark.parametrize("text", ["[]", "{}", "nan", "[" * 100_000, '{"body": []}', "\xff"])
def test_what_is_no_record_is_named(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    LEDGER.path.write_bytes(text.encode("latin-1") + b"\n")
    assert "ledger.jsonl:1 is no record of a ledger" in problems()[0]
    assert "ledger.jsonl:1 is no record of a ledger" in refused(["research", "log"], capfd)


def test_a_ledger_that_is_a_folder_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    LEDGER.path.unlink()
    LEDGER.path.mkdir()
    for command in (["research", "log"], ["research", "verify"], BASE):
        assert "ledger.jsonl: Is a directory; " in refused(command, capfd)
