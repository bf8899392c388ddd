# SPDX-License-Identifier: Apache-2.0
"""What is asked for is written, or refused in one line, whatever becomes of the screen."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.cli.main import main
from jaxlm.telemetry.page import write_page

ROOT = Path(__file__).parents[3]
TOO_LARGE = [str(ROOT / "configs" / "llama31_405b.gin"), "--topology", "v6e:16x16", "--analytic"]
PLAN = ["plan", str(ROOT / "configs" / "dense_110m.gin"), "--topology", "v6e:2x2"]


def to_nobody(*words: str, is_stderr_closed: bool = False) -> tuple[int, str]:
    """(exit code, stderr) of a command whose output is a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "jaxlm.cli.main", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, check=False,
        stdout=write, stderr=write if is_stderr_closed else subprocess.PIPE,
    )  # fmt: skip
    os.close(write)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("is_stderr_closed", [False, True])
def test_files_and_exit_code_need_no_reader(tmp_path: Path, is_stderr_closed: bool) -> None:
    files = ["--json", str(tmp_path / "p.json"), "--html", str(tmp_path / "p.html")]
    code = to_nobody("plan", *TOO_LARGE, *files, is_stderr_closed=is_stderr_closed)
    assert code == (1, "")
    assert not json.loads((tmp_path / "p.json").read_text())["fits"]
    assert (tmp_path / "p.html").exists()


def test_a_mistake_keeps_its_code_where_nobody_reads_of_it() -> None:
    assert to_nobody("plan", "no.gin", is_stderr_closed=True) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_full_screen_is_told_after_the_files_are_written(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jaxlm.cli.main", "plan", *TOO_LARGE, "--json", "p.json"],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, text=True, check=False,
            stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert done.returncode == 2
    assert "No space left on device; make room" in done.stderr
    assert (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["--json", "x", "--html", "./x"], "x cannot be written twice: give each option a file"),
        (["--html", "-"], "a file named - cannot be written"),
        (["--json", "x" * 300], "File name too long; choose a shorter name"),
        (["--json", "/proc/x.json"], "/proc/x.json: No such file or directory; make its folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    files: list[str], told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*PLAN, "--analytic", *files]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", ["/dev/null", "/proc"])
def test_a_cache_that_cannot_be_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert main(PLAN) == 2
    assert capsys.readouterr().err.startswith(f"jaxlm: error: {home}")


def test_a_pipe_is_written_into_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_page(tmp_path / "pipe", "<p>")
    assert os.read(reader, 9) == b"<p>"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
