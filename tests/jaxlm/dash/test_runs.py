# SPDX-License-Identifier: Apache-2.0
"""Runs are followed as they grow, each byte read once, whatever state their files are in."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from jaxlm.dash.runs import Run, Runs, RunTail
from jaxlm.dash.tail import Tail


def begin(path: Path, steps: int = 100, pid: int | None = None, **files: Any) -> Path:
    """A run directory without rows, held by this process."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"train": {"num_steps": steps}}))
    holder = f"process {pid or os.getpid()} on {socket.gethostname()}\n"
    (path / ".lock").write_text(holder)
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def row(step: int, loss: float, kind: str = "train", **more: Any) -> str:
    name = "train/loss_nats" if kind == "train" else "eval/bpb"
    return json.dumps({"kind": kind, "step": step, name: loss, **more}) + "\n"


def write(path: Path, *texts: str) -> None:
    with open(path / "telemetry.jsonl", "a", encoding="utf-8") as file:
        file.write("".join(texts))


def test_each_look_reads_what_is_new_and_nothing_else(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    tail = RunTail(run, None)
    costs = []
    for first in range(1, 2001, 100):
        before = tail.tail.bytes_read
        rows = [row(step, 1.0, **{"perf/step_time_s": 0.5}) for step in range(first, first + 100)]
        write(run, *rows)
        assert tail.look()
        assert not tail.look()
        costs.append(tail.tail.bytes_read - before == len("".join(rows)))
    assert all(costs)
    assert tail.tail.bytes_read == (run / "telemetry.jsonl").stat().st_size
    assert tail.at == (2000, 0.0, 1000.0)


def test_a_row_half_written_waits_and_a_damaged_one_is_counted(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    tail = RunTail(run, None)
    text = row(2, 2.5)
    write(run, row(1, 3.0), "garbage\n", '{"kind": "train"}\n', "[1]\n", text[:20])
    assert tail.look() and tail.at.step == 1 and tail.num_bad == 3
    write(run, text[20:])
    assert tail.look() and tail.at.step == 2
    assert [y for _, y in tail.curves["train/loss_nats"].points] == [3.0, 2.5]


def test_a_resumed_run_and_a_replaced_file_are_read_as_they_now_are(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    tail = RunTail(run, None)
    timed = {"perf/step_time_s": 1.0}
    write(run, *(row(step, 9.0, **timed) for step in range(1, 11)))
    tail.look()
    write(run, *(row(step, 1.0, **timed) for step in range(6, 8)))
    tail.look()
    points = tail.curves["train/loss_nats"].points
    assert [(at.step, at.seconds, y) for at, y in points][4:] == [
        (5, 5, 9.0),
        (6, 6, 1.0),
        (7, 7, 1.0),
    ]
    (run / "telemetry.jsonl").unlink()
    write(run, row(1, 4.0))
    tail.look()
    assert [y for _, y in tail.curves["train/loss_nats"].points] == [4.0]


def test_only_registered_names_and_numbers_become_curves(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    foreign = {
        "<script>/x": 1.0, "optim/lr": "<b>", "grad/norm_l2": True, "eval/bpb@web": 2.0,
        "optim/lr@" + "x" * 99: 1.0, "router/expert_tokens": [[1]], "perf/compiles": 10**400,
    }  # fmt: skip
    write(run, row(1, float("nan"), **foreign))
    tail = RunTail(run, None)
    tail.look()
    assert sorted(tail.curves) == ["eval/bpb@web", "train/loss_nats"]
    card = Run("0/run", run)
    card.look(time.time())
    json.dumps(card.card, allow_nan=False)


@pytest.mark.parametrize(
    ("pid", "summary", "status"),
    [
        (None, None, "running"),
        (2**22 - 3, None, "killed"),
        (None, {"status": "completed"}, "completed"),
        (2**22 - 3, {"status": "diverged"}, "diverged"),
        (None, {"status": "<script>"}, "running"),
        (2**22 - 3, [], "killed"),
    ],
)
def test_the_status_is_what_the_run_says_or_what_its_process_is(
    tmp_path: Path, pid: int | None, summary: Any, status: str
) -> None:
    files = {} if summary is None else {"summary": summary}
    run = Run("0/run", begin(tmp_path / "run", pid=pid, **files))
    assert run.look(time.time())
    assert run.card["status"] == status
    assert not run.look(time.time())  # and nothing is news twice


def test_a_card_says_how_far_and_how_long(tmp_path: Path) -> None:
    path = begin(tmp_path / "run", steps=100)
    speed = {"perf/step_time_s": 2.0, "perf/tokens_per_s": 500.0}
    write(path, *(row(step, 5.0, **speed) for step in range(1, 41)), row(40, 1.5, "eval"))
    run = Run("0/run", path)
    run.look(time.time())
    wanted = {
        "step": 40,
        "num_steps": 100,
        "eta_s": 120.0,
        "tokens_per_s": 500.0,
        "bpb": 1.5,
        "loss": 5.0,
    }
    assert {name: run.card[name] for name in wanted} == wanted


def test_runs_are_found_as_they_come_and_go(tmp_path: Path) -> None:
    runs = Runs([tmp_path / "a", tmp_path / "missing", begin(tmp_path / "alone")])
    begin(tmp_path / "a" / "one")
    (tmp_path / "a" / "no run").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "alone")
    changed, gone = runs.look()
    assert (sorted(changed), gone) == (["0/one", "2/alone"], [])
    write(begin(tmp_path / "a" / "two"), row(1, 2.0))
    write(tmp_path / "alone", row(1, 2.0))
    assert sorted(runs.look()[0]) == ["0/two", "2/alone"]
    assert runs.look() == ([], [])
    os.rename(tmp_path / "a" / "two", tmp_path / "elsewhere")
    assert runs.look() == ([], ["0/two"])


def test_a_long_history_is_read_over_several_looks(tmp_path: Path) -> None:
    run = begin(tmp_path / "runs" / "long")
    write(run, *(row(step, 1.0) for step in range(1, 3001)))
    runs = Runs([tmp_path / "runs"])
    steps = []
    for _ in range(6):
        runs.look(budget=50_000)
        steps.append(runs.found["0/long"].card["step"])
    assert 0 < steps[0] < steps[1] < steps[-1] == 3000


def test_a_line_without_end_does_not_stop_the_rest(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100 + b"\n" + b"good\n")
    tail = Tail(tmp_path / "f")
    read = [line for _ in range(20) for line in tail.lines(most=32)]
    assert read[-1] == b"good"
