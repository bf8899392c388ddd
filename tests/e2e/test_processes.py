# SPDX-License-Identifier: Apache-2.0
"""Several processes: the same batches, one decision to stop, and none that waits for ever."""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxlm.cli.gin_edge import load
from jaxlm.data.loader import BatchSource
from jaxlm.data.prepare import prepare
from jaxlm.train.checkpoint import list_checkpoints
from jaxlm.train.run_dir import CHECKPOINTS
from jaxlm.train.sealing import verify
from tests.e2e.runs import (
    NUM_STEPS,
    STOPPED,
    Job,
    assert_same_run,
    column,
    finish,
    last_step,
    processes_of,
    status,
    wait_for,
)


def digest(batch: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()


def test_the_batches_of_one_two_and_four_hosts_are_the_same(whole: Path, tiny_config: Path):
    """Every host reads its rows through its own threads; stopped at updates 20 and 40."""
    config = load([str(tiny_config)], []).data
    data = prepare(config)
    batches = [BatchSource(data, config).batch(step) for step in range(NUM_STEPS)]
    found: list[dict[str, np.ndarray]] = []
    for hosts, start in ((1, 0), (2, 20), (4, 40)):
        size = config.batch_size // hosts
        parts = [
            BatchSource(data, config).iter_batches(
                start, start + 20, slice(i * size, (i + 1) * size)
            )
            for i in range(hosts)
        ]
        found += (
            {name: np.concatenate([batch[name] for batch in rows]) for name in rows[0]}
            for rows in zip(*parts, strict=True)
        )
    assert [digest(batch) for batch in found] == [digest(batch) for batch in batches]
    assert len({digest(batch) for batch in batches}) == NUM_STEPS
    np.testing.assert_array_equal(
        [b["weights"].sum() for b in batches], column(whole, "train/tokens")
    )


def assert_same_curve(run_dir: Path, whole: Path) -> None:
    """The same batches on other devices: sums in another order, so equal to 1e-5."""
    for name in ("train/tokens", "data/tokens_seen"):
        np.testing.assert_array_equal(column(run_dir, name), column(whole, name))
    name = "train/loss_nats"
    np.testing.assert_allclose(column(run_dir, name), column(whole, name), rtol=1e-5)


def signal_one(job: Job, process_id: int, number: int, step: int) -> tuple[int, str]:
    """Starts a job and sends a signal to one of its processes."""
    launcher = job.start()
    wait_for(lambda: last_step(job.run_dir) >= step, launcher)
    (pid,) = processes_of(job.run_dir, "--process-id", str(process_id))
    os.kill(pid, number)
    return finish(launcher)


@pytest.mark.parametrize("field", ["DataConfig.seed", "TrainConfig.checkpoint_every"])
def test_processes_that_were_started_unlike_are_refused_alike(
    tiny_config: Path, tmp_path: Path, field: str
):
    """They would train on a mixture of both, or wait for ever."""
    with socket.create_server(("localhost", 0)) as free:
        place = f"localhost:{free.getsockname()[1]}"
    words = ["-m", "jaxlm.cli.main", "train", str(tiny_config), "--run", str(tmp_path / "run")]
    words += ["--coordinator", place, "--num-processes", "2", "--cpu-devices", "1"]
    run = lambda i, *more: subprocess.Popen(
        [sys.executable, *words, "--process-id", str(i), *more], stderr=subprocess.PIPE, text=True
    )
    processes = run(0), run(1, "--set", f"{field}=9")
    for process in processes:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 2
        assert said.startswith("jaxlm: error: process 1 has another config: ")
        assert f"{field.rpartition('.')[2]} is 9 there" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_to_one_of_two_stops_both_and_a_finished_run_refuses_both(
    whole: Path, tiny_config: Path, tmp_path: Path
):
    job = Job(tiny_config, tmp_path / "run", processes=2)
    code, err = signal_one(job, 1, signal.SIGTERM, step=12)
    newest = list_checkpoints(job.run_dir / CHECKPOINTS)[-1]
    assert (code, status(job.run_dir)) == (STOPPED, "preempted")
    assert err == 2 * f"stopped after update {newest}; the same command goes on from there\n"
    assert newest == last_step(job.run_dir) >= 12
    verify(job.run_dir / CHECKPOINTS / f"{newest:08d}")
    assert Job(tiny_config, job.run_dir).run() == (0, "")  # on with one
    assert_same_curve(job.run_dir, whole)
    code, err = finish(job.start(), limit_s=40)
    first, second = sorted(err.splitlines(), key=len)  # the two may print in any order
    assert code == 2
    assert first.startswith(f"jaxlm: error: {job.run_dir} is finished (60 updates)")
    assert second == first.replace("error: ", "error: process 0 stopped: ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_with_two_and_then_four_processes(tiny_config: Path, tmp_path: Path):
    """Four devices throughout: 1 x 4, 2 x 2, 4 x 1."""
    unhurt = Job(tiny_config, tmp_path / "whole", devices=4)
    assert unhurt.run() == (0, "")
    run_dir = tmp_path / "run"
    assert Job(tiny_config, run_dir, devices=4).stop(12)[0] == STOPPED
    assert Job(tiny_config, run_dir, devices=2, processes=2).stop(30)[0] == STOPPED
    assert Job(tiny_config, run_dir, devices=1, processes=4).run() == (0, "")
    assert_same_curve(run_dir, unhurt.run_dir)
    assert not processes_of(run_dir)


ABORTS = """
import os, sys, time, jax
from jax._src import distributed
from jaxlm.train.processes import all_alike, leaving_at_failure, main_first
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
jax.devices()
for _ in range(2):  # a second run in the same processes
    all_alike("text", {"data_id": 1})
    assert main_first(lambda: 7) == 7
def work():
    if sys.argv[2] == "0":
        os.abort()
    time.sleep(60)
if sys.argv[3] == "train":
    with leaving_at_failure():
        distributed.global_state.client.wait_at_barrier("both inside", 60_000)
        work()
main_first(work)
"""


@pytest.mark.parametrize("phase", ["prepare", "train"])
def test_an_abort_is_one_where_it_began_and_a_lost_process_to_the_others(phase: str):
    """JAX aborts the others, out of Python's reach; 75 is what schedulers start again by."""
    with socket.create_server(("localhost", 0)) as free:
        place = f"localhost:{free.getsockname()[1]}"
    run = lambda i: subprocess.Popen(
        [sys.executable, "-c", ABORTS, place, str(i), phase], stderr=subprocess.PIPE, text=True
    )
    first, second = run(0), run(1)
    said = [process.communicate(timeout=60)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (-signal.SIGABRT, STOPPED)
    assert ["another process has gone; start them all again" in text for text in said] == [
        False,
        True,
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killing_either_of_two_ends_both_and_the_same_command_goes_on(
    tiny_config: Path, tmp_path: Path
):
    """Bit for bit, as the number of processes stays the same.  Some of the kills hit a save."""
    longer = ("TrainConfig.num_steps=200", "TrainConfig.checkpoint_every=3")
    unhurt = Job(tiny_config, tmp_path / "whole", 2, 2, longer)
    assert unhurt.run() == (0, "")
    job, rng = Job(tiny_config, tmp_path / "run", 2, 2, longer), random.Random(0)
    for process_id in (1, 0, 1, 0):
        step = last_step(job.run_dir) + rng.randint(1, 30)
        start = time.monotonic()
        code, err = signal_one(job, process_id, signal.SIGKILL, step)
        print(process_id, step, code, round(time.monotonic() - start, 1), err)
        assert code == (128 + signal.SIGKILL if process_id == 0 else STOPPED)
        assert process_id == 0 or err.startswith(
            "jaxlm: error: another process has gone; start them all again"
        )
        assert not processes_of(job.run_dir)
    assert signal_one(job, 0, signal.SIGTERM, last_step(job.run_dir) + 20)[0] == STOPPED
    assert job.run() == (0, "")
    assert_same_run(job.run_dir, unhurt.run_dir)
