# SPDX-License-Identifier: Apache-2.0
"""Full and read-only disks, closed outputs, busy directories and absent machines."""

import gc
import importlib
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from jaxlm.cli import common
from jaxlm.cli.main import main
from jaxlm.telemetry import writer
from jaxlm.train.checkpoint import list_checkpoints
from tests.e2e.workshop import ROOT, free_port, furnish, process, refused, remount, small_disk, tree

slow = partial(pytest.param, marks=pytest.mark.slow)
CHECKPOINTS = Path("run/checkpoints")
TRAIN = ["train", "base.gin", "--run", "run"]
LONGER = ["--set", "TrainConfig.num_steps=8"]


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)


def fill(folder: Path, leave: int = 0) -> Path:
    """Takes all room on the disk of `folder` but `leave` bytes."""
    ballast = folder / "ballast"
    free = shutil.disk_usage(folder).free
    with open(ballast, "wb", buffering=0) as file:
        file.write(bytes(max(free - leave, 0)))
    return ballast


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith("jaxlm: error: "), err
    return lines[0]


def test_disk_full_while_data_is_prepared(capfd: pytest.CaptureFixture[str]) -> None:
    with small_disk(Path("data"), "64k"):
        line = refused(TRAIN, capfd)
        assert "No space left on device" in line
        assert "free some space" in line
        assert not Path("run").exists()
        remount(Path("data"), "size=16m")
        assert main(TRAIN) == 0
    told = capfd.readouterr().out  # a whole run ends with its curve, its text and its table
    assert told.index("training loss\n") < told.index("completed after 4 updates")
    assert "  | la " in told


@pytest.mark.parametrize("room", [0, slow(500_000)])
def test_disk_full_while_a_checkpoint_is_written(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """The save after the first finds no room; then there is room again, and the run goes on."""
    from jaxlm.train.checkpoint import Checkpointer

    save = Checkpointer.save

    def save_on_a_full_disk(self: Checkpointer, step: int, *arrays: object) -> None:
        if step == 4:
            self.wait()
            fill(Path("run"), room)
        save(self, step, *arrays)

    with small_disk(Path("run"), "4m"):
        monkeypatch.setattr(Checkpointer, "save", save_on_a_full_disk)
        capfd.readouterr()
        assert main([*TRAIN, *LONGER]) == 2
        line = one_line(capfd.readouterr().err)
        assert "No space left" in line
        assert "make room, then give the same command again" in line
        assert list_checkpoints(CHECKPOINTS) == [2]
        monkeypatch.setattr(Checkpointer, "save", save)
        Path("run/ballast").unlink()
        assert main([*TRAIN, *LONGER]) == 0
        assert list_checkpoints(CHECKPOINTS) == [6, 8]


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 3_000, 12_000, 40_000])
def test_disk_that_fills_up_during_a_save(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """There was room when it was asked for; somebody else took it while files were written."""
    from jaxlm.train import checkpoint

    check = checkpoint._check_room

    def look_and_lose(path: Path, state: object) -> None:
        if path.name == "00000004":
            fill(Path("run"), room)

    with small_disk(Path("run"), "4m"):
        monkeypatch.setattr(checkpoint, "_check_room", look_and_lose)
        capfd.readouterr()
        assert main([*TRAIN, *LONGER]) == 2
        gc.collect()
        line = one_line(capfd.readouterr().err)
        assert "No space left" in line, line
        assert "make room, then give the same command again" in line
        assert list_checkpoints(CHECKPOINTS) == [2]
        monkeypatch.setattr(checkpoint, "_check_room", check)
        Path("run/ballast").unlink()
        assert main([*TRAIN, *LONGER]) == 0
        assert list_checkpoints(CHECKPOINTS) == [6, 8]


@pytest.mark.parametrize("room", [slow(0), 200])
def test_disk_full_while_a_row_of_telemetry_is_written(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    write = writer.JsonlWriter.write

    def write_on_a_full_disk(self: writer.JsonlWriter, row: writer.Row) -> None:
        if row["step"] == 3:
            while not list_checkpoints(CHECKPOINTS):  # the save of step 2 is still being written
                time.sleep(0.01)
            fill(Path("run"), room)
        write(self, row | {"event": "x" * 8000} if row["step"] == 3 else row)

    with small_disk(Path("run"), "4m"):
        monkeypatch.setattr(writer.JsonlWriter, "write", write_on_a_full_disk)
        capfd.readouterr()
        assert main([*TRAIN, *LONGER]) == 2
        line = one_line(capfd.readouterr().err)
        assert "cannot write run/telemetry.jsonl: No space left on device; make room" in line
        assert list_checkpoints(CHECKPOINTS) == [2]
        monkeypatch.setattr(writer.JsonlWriter, "write", write)
        before = tree("run")
        assert main([*TRAIN, *LONGER]) == 2  # still full: refused, and nothing is lost
        assert "make room" in one_line(capfd.readouterr().err)
        assert before.items() <= tree("run").items()
        Path("run/ballast").unlink()
        assert main([*TRAIN, *LONGER]) == 0
        steps = [row["step"] for row in writer.latest_rows(Path("run"), "train")]
        assert steps == list(range(1, 9))


@pytest.mark.parametrize("where", ["loop.append_json", slow("session.write_report")])
@pytest.mark.parametrize("room", [0, slow(8_000)])
def test_disk_full_while_a_sample_or_the_report_is_written(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str, room: int
) -> None:
    part, name = where.split(".")
    module = importlib.import_module(f"jaxlm.train.{part}")
    write = getattr(module, name)

    def write_on_a_full_disk(*args: object) -> None:
        if not Path("run/ballast").exists():
            while not list_checkpoints(CHECKPOINTS):  # the save is still being written
                time.sleep(0.01)
            fill(Path("run"), 0 if part == "loop" else room)
        write(*args)

    with small_disk(Path("run"), "4m"):
        monkeypatch.setattr(module, name, write_on_a_full_disk)
        capfd.readouterr()
        assert main(TRAIN) == 2
        assert "No space left on device" in one_line(capfd.readouterr().err)
        monkeypatch.setattr(module, name, write)
        Path("run/ballast").unlink()
        assert main(TRAIN) == 0
        assert Path("run/report.html").stat().st_size > 8_000
        assert len(Path("run/samples.jsonl").read_text().splitlines()) >= 1


def test_read_only_directories_are_refused_before_text_is_read(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with small_disk(Path("runs"), "4m"):
        remount(Path("runs"), "ro")
        line = refused(["train", "base.gin", "--run", "runs/new"], capfd)
        assert "run directory runs/new: runs is read-only; choose another with --run DIR" in line
        assert not Path("data").exists()
    with small_disk(Path("data"), "4m"):
        remount(Path("data"), "ro")
        assert "data: cannot be written (Read-only file system)" in refused(TRAIN, capfd)
        assert not Path("run").exists()


def test_a_read_only_project_is_told_as_such(capfd: pytest.CaptureFixture[str]) -> None:
    with small_disk(Path("research"), "4m"):
        remount(Path("research"), "ro")
        line = refused(["ablate", "base.gin", "--vary", "OptimConfig.b1=[0.8]"], capfd)
        assert "Read-only file system; choose a folder on a disk that can be written" in line


def test_a_complete_cache_on_a_read_only_disk_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    with small_disk(Path("data"), "16m"):
        assert main(["data", "prepare", "base.gin"]) == 0
        before = tree("data")
        remount(Path("data"), "ro")
        os.utime("text/docs.jsonl")  # its hash is taken again, and cannot be remembered
        assert main(TRAIN) == 0
        assert tree("data") == before
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("every", "kept"),
    [(1, "the checkpoint of update 1 is whole; "), (2, "there is no checkpoint yet; ")],
)
def test_a_refused_update_says_what_is_left(
    capfd: pytest.CaptureFixture[str], every: int, kept: str
) -> None:
    diverging = ["OptimConfig.peak_lr=3e38", f"TrainConfig.checkpoint_every={every}"]
    assert main([*TRAIN, *(word for text in diverging for word in ("--set", text))]) == 3
    line = one_line(capfd.readouterr().err)
    assert "update 2 was refused: " in line
    assert kept in line
    assert list_checkpoints(CHECKPOINTS) == [1][: every == 1]


@pytest.mark.slow
def test_a_read_only_run_can_still_be_used(capfd: pytest.CaptureFixture[str]) -> None:
    with small_disk(Path("run"), "4m"):
        assert main(TRAIN) == 0
        remount(Path("run"), "ro")
        assert main(["generate", "run", "la", "--tokens", "2"]) == 0
        assert main(["eval", "run"]) == 0
    assert capfd.readouterr().err == ""


def test_a_second_process_on_one_directory_is_refused(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxlm.train import session

    errors = []

    def train_and_try_again(*args: object) -> object:
        errors.append(refused(TRAIN, capfd))
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "_train", train_and_try_again)
    assert main(TRAIN) == 130
    (error,) = errors
    assert f"run is in use by process {os.getpid()} on " in error
    assert "stop it first, or choose another with --run DIR" in error


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_absent_accelerator_is_one_line(platform: str) -> None:
    done = process(*TRAIN, JAX_PLATFORMS=platform)
    if done.returncode == 0:
        pytest.skip(f"this machine has {platform}")
    line = one_line(done.stderr)
    assert done.returncode == 2
    assert f"JAX_PLATFORMS='{platform}' cannot be used here" in line
    assert "unset it" in line
    assert not Path("run").exists()


@pytest.mark.parametrize("address", ["localhost:9", "[::1]:9", "localhost:99999"])
def test_unreachable_coordinator_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(common, "JOIN_TIMEOUT_S", 0.3)
    others = ["--num-processes", "2", "--process-id", "1"]
    line = refused([*TRAIN, "--coordinator", address, *others], capfd)
    assert f"--coordinator {address} does not answer" in line
    assert "check that process 0 runs" in line
    assert not Path("run").exists()


def test_peers_that_never_come_are_one_line() -> None:
    code = "; ".join(
        [
            "import sys; from jaxlm.cli import common, main",
            "common.JOIN_TIMEOUT_S = 1",
            f"sys.exit(main.main({[*TRAIN, '--coordinator', f'localhost:{free_port()}']} + "
            "['--num-processes', '2', '--process-id', '0']))",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False, cwd=Path.cwd(),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "not all processes came to localhost:" in one_line(done.stderr)
    assert not Path("run").exists()


@pytest.mark.slow
def test_closed_and_full_outputs_end_no_run_and_no_command() -> None:
    jaxlm = f"{sys.executable} -m jaxlm.cli.main"
    for command, want in [
        (f"{jaxlm} --help | head -0", 0),
        (f"{jaxlm} train base.gin --run run | head -1", 0),
        (f"{jaxlm} train base.gin --run other >&-", 0),
        (f"{jaxlm} generate run la --tokens 3 | head -0", 0),
        (f"{jaxlm} data inspect base.gin >/dev/full", 2),
    ]:
        script = f"set -o pipefail; {command}"
        done = subprocess.run(
            ["bash", "-c", script],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        assert done.returncode == want, (command, done.stderr)
        assert len(done.stderr.splitlines()) == (want != 0), (command, done.stderr)
    assert Path("run/summary.json").exists()
