# SPDX-License-Identifier: Apache-2.0
"""Workers of a cluster: one that is killed loses nothing, one that cannot be is told in a line."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research import launch
from jaxlm.research.launch import Workers
from jaxlm.telemetry.writer import latest_rows
from tests.e2e.workshop import ROOT, furnish, process


def needs(module: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not there, reason=f"{module} is not installed")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    furnish(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = process("train", "base.gin", "--run", "run", "--set", "TrainConfig.num_steps=40")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("where", "options"),
    [
        pytest.param("ray", {"num_cpus": 1}, marks=needs("ray")),
        pytest.param("slurm", {"cluster": "local", "timeout_min": 5}, marks=needs("submitit")),
    ],
)
def test_a_killed_worker_of_a_cluster_loses_nothing(
    alone: Path, where: str, options: dict[str, object], tmp_path: Path
) -> None:
    furnish(tmp_path)
    words = [sys.executable, "-m", "tests.jaxlm.research.on_cluster", where, json.dumps(options)]
    command = ["env", f"PYTHONPATH={ROOT}", *words, "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    evaluation = json.loads(done.stdout.splitlines()[-1])["evaluation"]
    losses = [
        [row["train/loss_nats"] for row in latest_rows(path, "train")]
        for path in (tmp_path / "run", alone)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 40
    events = [row["event"] for row in latest_rows(tmp_path / "run", "event")]
    assert "resumed" in events
    final = json.loads((alone / "summary.json").read_text())["final"]
    assert evaluation["eval/bpb"] == final["eval/bpb"]


def test_what_is_not_installed_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    for where, extra in (("ray", "jaxlm[ray]"), ("slurm", "jaxlm[slurm]")):
        with pytest.raises(ConfigError) as error:
            Workers(1, where)
        assert extra in str(error.value)


def test_a_worker_is_told_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real child, in the place of Python, writes down all that it was told."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nenv > {tmp_path}/told\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.setenv(name, "sk-ant-secret-of-a-person")
    launch.run_job("train", tmp_path / "job.json", lambda news: None, threading.Event())
    told = (tmp_path / "told").read_text()
    assert "PATH=" in told
    assert "sk-ant-secret" not in told


@pytest.mark.parametrize("wish", ["SIG_DFL", "SIG_IGN"])
def test_a_worker_that_is_to_stop_ends_also_where_it_does_not_want_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    python = tmp_path / "python"
    says = f"import signal, time; signal.signal(signal.SIGTERM, signal.{wish}); time.sleep(60)"
    python.write_text(
        f"#!/bin/sh\necho start >> {tmp_path}/told\nexec {sys.executable} -c '{says}'\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(launch, "GRACE_S", 1.0)
    stop, begun = threading.Event(), time.monotonic()
    threading.Timer(1.0, stop.set).start()
    with pytest.raises(RunError, match="a worker stopped: it was asked to"):
        launch.run_job("train", tmp_path / "job.json", lambda news: None, stop)
    assert time.monotonic() - begun < 20
    assert (tmp_path / "told").read_text() == "start\n"  # and is not started again


def test_what_a_killed_controller_left_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    """As processes: a lock is its process's, and goes with it however it ends."""
    code = "import pathlib, sys, time; from jaxlm.research.launch import _own_folder\n"
    code += "with _own_folder(pathlib.Path(sys.argv[1])) as f: print(f, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)
    ]
    try:
        killed, living = (Path(p.stdout.readline().strip()) for p in started if p.stdout)
        started[0].kill()
        started[0].wait()
        (tmp_path / ".jobs.new").mkdir()  # its controller is about to take the lock
        (tmp_path / ".jobs.new" / launch.LOCK).touch()
        (tmp_path / ".jobs.far").mkdir()  # of another machine, whose locks may not show here
        (tmp_path / ".jobs.far" / launch.LOCK).write_text("elsewhere")
        assert killed.exists()
        with launch._own_folder(tmp_path) as own:
            there = {own, living, tmp_path / ".jobs.new", tmp_path / ".jobs.far"}
            assert set(tmp_path.iterdir()) == there
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert not own.exists()
