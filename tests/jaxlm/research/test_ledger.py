# SPDX-License-Identifier: Apache-2.0
"""Nothing in a ledger changes, vanishes or moves without showing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxlm.bench.attacks.ledgers import edited, forge
from jaxlm.core.errors import RunError
from jaxlm.research.ledger import Ledger, Record
from jaxlm.research.records import Arm, Protocol, RunRecord, body
from jaxlm.research.verify import content, verify

PROTOCOL = Protocol(
    hypothesis="more is better",
    arms=(
        Arm(name="baseline", changes={}, config_id="a"),
        Arm(name="more", changes={"OptimConfig.peak_lr": "2e-3"}, config_id="b"),
    ),
    seeds=(0, 1),
    metric="eval/bpb",
    direction="lower",
    smallest_effect=0.0,
    alpha=0.05,
    flops_per_run={"baseline": 1.0, "more": 1.0},
    tokens_per_run={"baseline": 1.0, "more": 1.0},
    budget=None,
    data_id="d",
    code="c",
    evaluator="e",
    rules="other rules than today's",
)


def run_record(arm: str, seed: int) -> dict[str, Any]:
    """A run that diverged: it needs no directory."""
    return body(
        RunRecord(
            protocol=PROTOCOL.id, arm=arm, seed=seed, run_id=f"{arm}{seed}", directory="runs/x",
            status="diverged", metric=None, evaluation=None, is_reused=False,
        )
    )  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("protocol", body(PROTOCOL))
    ledger.append("approval", {"protocol": PROTOCOL.id, "by": "somebody"})
    for seed in PROTOCOL.seeds:
        for arm in PROTOCOL.arms:
            ledger.append("run", run_record(arm.name, seed))
    ledger.append("review", {"protocol": PROTOCOL.id, "is_exploratory": False, "verdicts": []})
    return ledger


def problems(ledger: Ledger) -> list[str]:
    return verify(ledger, ledger.path.parent)


def test_a_ledger_as_it_was_written_holds(ledger: Ledger) -> None:
    assert problems(ledger) == []
    assert [record.seq for record in ledger] == list(range(7))


def test_a_change_of_any_one_byte_is_found(ledger: Ledger) -> None:
    whole = ledger.path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        ledger.path.write_bytes(damaged)
        assert problems(ledger), whole[max(0, position - 20) : position + 20]


@pytest.mark.parametrize("dropped", range(7))
def test_a_dropped_record_is_found(ledger: Ledger, dropped: int) -> None:
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    del lines[dropped]
    ledger.path.write_bytes(b"".join(lines))
    assert problems(ledger)


@pytest.mark.parametrize("first", range(6))
def test_re_ordered_records_are_found(ledger: Ledger, first: int) -> None:
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    lines[first : first + 2] = lines[first + 1], lines[first]
    ledger.path.write_bytes(b"".join(lines))
    assert problems(ledger)


FORGERIES: dict[str, tuple[Callable[[list[Record]], list[Record]], str]] = {
    "edited protocol": (
        lambda rs: [edited(rs[0], smallest_effect=0.5), *rs[1:]],
        "the protocol was edited",
    ),
    "added seed": (
        lambda rs: [*rs[:4], edited(rs[4], seed=7), *rs[4:]],
        "arm 'baseline' with seed 7 is not in the protocol",
    ),
    "seed run again": (lambda rs: [*rs[:3], rs[2], *rs[3:]], "was recorded before"),
    "metric without a completed run": (
        lambda rs: [*rs[:3], edited(rs[3], metric=0.9), *rs[4:]],
        "status 'diverged' with metric 0.9",
    ),
    "dropped run": (lambda rs: [*rs[:3], *rs[4:]], "review before all runs"),
    "no approval": (lambda rs: [rs[0], *rs[2:]], "nobody approved"),
    "protocol after its runs": (lambda rs: [*rs[1:], rs[0]], "was not fixed before it"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_departs_from_the_protocol_is_found_though_every_hash_fits(
    ledger: Ledger, name: str
) -> None:
    change, expected = FORGERIES[name]
    forge(ledger, change)
    assert any(expected in problem for problem in problems(ledger)), problems(ledger)


def test_a_torn_last_line_is_told_and_the_next_append_removes_it(ledger: Ledger) -> None:
    before = content(ledger)
    with open(ledger.path, "ab") as file:
        file.write(b'{"seq": 7, "ti')
    assert "torn" in problems(ledger)[0]
    assert content(ledger) == before
    ledger.append("approval", {"protocol": PROTOCOL.id, "by": "another"})
    assert problems(ledger) == []


def test_a_crash_between_record_and_head_is_no_damage(ledger: Ledger) -> None:
    head = ledger.head_path.read_bytes()
    ledger.append("approval", {"protocol": PROTOCOL.id, "by": "another"})
    ledger.head_path.write_bytes(head)
    assert problems(ledger) == []


def test_a_dropped_tail_shows_at_the_head(ledger: Ledger) -> None:
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[:-1]))
    assert "tells of 7 records, the ledger has 6" in problems(ledger)[0]


def cut(ledger: Ledger, lines: int) -> None:
    whole = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(whole[:-lines]))


def exchange(ledger: Ledger) -> None:
    """Another last record, under a head that tells of the one that was there."""
    head = ledger.head_path.read_bytes()
    forge(ledger, lambda rs: [*rs[:-1], edited(rs[-1], is_exploratory=True)])
    ledger.head_path.write_bytes(head)


DAMAGE: dict[str, tuple[Callable[[Ledger], object], str]] = {
    "the tail dropped": (lambda ledger: cut(ledger, 1), "tells of 7 records, the ledger has 6"),
    "more dropped": (lambda ledger: cut(ledger, 3), "tells of 7 records, the ledger has 4"),
    "all dropped": (lambda ledger: ledger.path.unlink(), "tells of 7 records, the ledger has 0"),
    "the last exchanged": (exchange, "does not match record 6"),
    "no head": (lambda ledger: ledger.head_path.unlink(), "is missing or damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_nothing_follows_a_ledger_that_its_head_contradicts(ledger: Ledger, name: str) -> None:
    """Or the next record would put the head right, and what was dropped would be forgotten."""
    damage, expected = DAMAGE[name]
    damage(ledger)
    files = [path for path in (ledger.path, ledger.head_path) if path.exists()]
    before = [path.read_bytes() for path in files]
    for step in (ledger.check, lambda: ledger.append("approval", {"protocol": PROTOCOL.id})):
        with pytest.raises(RunError, match=f"{expected}; nothing may follow: put back copies of"):
            step()
    assert [path.read_bytes() for path in files] == before
    assert ledger.path.exists() == (ledger.path in files)


def test_two_crashes_between_record_and_head_are_no_damage(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Ledger._write_head
    for seq in (7, 8):
        crash = lambda ledger, last, at=seq: 1 / 0 if last.seq == at else write(ledger, last)
        monkeypatch.setattr(Ledger, "_write_head", crash)
        with pytest.raises(ZeroDivisionError):
            ledger.append("approval", {"protocol": PROTOCOL.id, "by": "another"})
        assert len(list(ledger)) == seq + 1
        ledger.check()
        assert problems(ledger) == []
