# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped, however, ends as if it had not been: bit for bit."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlm.train.checkpoint import list_checkpoints
from jaxlm.train.run_dir import CHECKPOINTS
from jaxlm.train.sealing import MANIFEST, verify
from tests.e2e.runs import (
    STOPPED,
    Job,
    assert_same_run,
    curves,
    finish,
    last_step,
    processes_of,
    state_of,
    status,
    wait_for,
)


def test_ctrl_c_a_kill_and_damage_leave_no_trace_in_the_result(
    whole: Path, tiny_config: Path, tmp_path: Path
):
    job = Job(tiny_config, tmp_path / "run")
    code, err = job.stop(12, signal.SIGINT)
    (newest,) = list_checkpoints(job.run_dir / CHECKPOINTS)[-1:]
    assert (code, status(job.run_dir)) == (STOPPED, "preempted")
    assert err == f"stopped after update {newest}; the same command goes on from there\n"
    assert newest == last_step(job.run_dir) >= 12
    verify(job.run_dir / CHECKPOINTS / f"{newest:08d}")
    assert job.stop(35, signal.SIGKILL) == (-signal.SIGKILL, "")
    assert not processes_of(job.run_dir)
    assert status(job.run_dir) is None  # what it said of an earlier part no longer holds
    with open(job.run_dir / "telemetry.jsonl", "a") as f:
        f.write('{"kind": "train", "st')  # a row that was being written
    newest = job.run_dir / CHECKPOINTS / f"{list_checkpoints(job.run_dir / CHECKPOINTS)[-1]:08d}"
    (newest / "state" / "_METADATA").write_bytes(b"damaged: the one before will do")
    assert job.run() == (0, "")
    assert_same_run(job.run_dir, whole)


def test_a_second_signal_stops_at_once_even_while_compiling(tiny_config: Path, tmp_path: Path):
    job = Job(tiny_config, tmp_path / "run")
    process = job.start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "empty"))
    wait_for((job.run_dir / "env.json").exists, process)  # compilation comes next
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "one signal waits for the current update"
    process.send_signal(signal.SIGTERM)
    assert finish(process, limit_s=2) == (128 + signal.SIGTERM, "")
    assert last_step(job.run_dir) == 0, "it was not compiling"


def test_a_diverged_run_keeps_its_last_sound_checkpoint(tiny_config: Path, tmp_path: Path):
    job = Job(
        tiny_config,
        tmp_path / "run",
        overrides=("OptimConfig.peak_lr=1e30", "TrainConfig.checkpoint_every=1"),
    )
    code, err = job.run()
    assert (code, err.count("\n"), status(job.run_dir)) == (3, 1, "diverged")
    rows = [row for (kind, _), row in curves(job.run_dir).items() if kind == "train"]
    assert [row["update/applied"] for row in rows] == [1.0] * (len(rows) - 1) + [0.0]
    assert err.startswith(f"jaxlm: error: update {len(rows)} was refused: loss ")
    assert list_checkpoints(job.run_dir / CHECKPOINTS)[-1] == len(rows) - 1
    assert int(state_of(job.run_dir).step) == len(rows) - 1


def moments(run_dir: Path, rng: random.Random) -> list[tuple[str, Callable[[], bool], float]]:
    """(name, what to wait for, seconds more) of each kind of moment; see the loop for their order."""
    last, folder = last_step(run_dir), run_dir / CHECKPOINTS
    unsealed = lambda: any(not (folder / name / MANIFEST).exists() for name in os.listdir(folder))
    saving = lambda: last_step(run_dir) > last and unsealed()
    target = last + rng.randint(1, 20)
    next_eval = last - last % 10 + 10
    return [
        ("any time", lambda: True, rng.uniform(0, 12)),
        ("save", saving, rng.uniform(0, 0.02)),
        ("step", lambda: last_step(run_dir) >= target, rng.uniform(0, 0.05)),
        ("evaluation", lambda: last_step(run_dir) >= next_eval, rng.uniform(0, 0.01)),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twelve_sigkills_at_random_moments_change_nothing(tiny_config: Path, tmp_path: Path):
    longer = ("TrainConfig.num_steps=1500",)  # more than three kills "any time" leave done
    unhurt = Job(tiny_config, tmp_path / "whole", overrides=longer)
    assert unhurt.run() == (0, "")
    job = Job(tiny_config, tmp_path / "run", overrides=longer)
    rng, kills = random.Random(0), []
    while len(kills) < 12:
        name, condition, more_s = moments(job.run_dir, rng)[len(kills) % 4]
        process = job.start()
        wait_for(condition, process)
        time.sleep(more_s)
        process.kill()
        code, err = finish(process)
        kills.append((name, round(more_s, 3), last_step(job.run_dir)))
        assert (code, err) == (-signal.SIGKILL, ""), f"ended before it was killed; {kills}"
        assert not processes_of(job.run_dir)
    print(kills)
    assert job.run() == (0, "")
    assert_same_run(job.run_dir, unhurt.run_dir)
