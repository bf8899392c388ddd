# SPDX-License-Identifier: Apache-2.0
"""However a plan ends, the process that compiles for it ends too, and its folder goes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jaxlm.plan import compiled

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "dense_110m.gin")
# A real plan with a real compiling process, in which the compiler says its process's id and then nothing.
CHILD = """
import os, sys, time
from jaxlm.plan import compile_step
compile_step.devices_of = lambda _: print("at work:", os.getpid(), flush=True) or time.sleep(600)
compile_step.main(sys.argv[3:])
"""
PLAN = f"""
import importlib.util, subprocess, sys
from jaxlm.cli.main import main
start, find = subprocess.Popen, importlib.util.find_spec
subprocess.Popen = lambda words, **more: start([words[0], "-c", {CHILD!r}, *words[1:]], **more)
importlib.util.find_spec = lambda name, *more: find("json" if name == "libtpu" else name, *more)
sys.exit(main(["plan", {CONFIG!r}, "--topology", "v6e:2x2"]))
"""


def until(condition: Callable[[], object], limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    return tmp_path / "jaxlm" / "plans"


@pytest.fixture
def at_work(tmp_path: Path, plans: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """(A plan that waits for its compiler, the compiling process)."""
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    plan = subprocess.Popen(
        [sys.executable, "-c", PLAN], env=env, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    said = lambda: "".join(p.read_text() for p in plans.glob(".part-*/log.txt"))
    until(lambda: "at work: " in said() or plan.poll() is not None)
    try:
        yield plan, int(said().rpartition("at work: ")[2])
    finally:
        plan.kill()
        plan.wait()


def test_sigterm_ends_both_and_leaves_nothing(
    at_work: tuple["subprocess.Popen[str]", int], plans: Path
) -> None:
    plan, compiling = at_work
    plan.terminate()
    _, err = plan.communicate(timeout=30)
    assert (plan.returncode, err.splitlines()[-1]) == (130, "jaxlm: error: interrupted")
    assert not is_alive(compiling)
    assert list(plans.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked to end the process")
def test_what_a_killed_plan_leaves_the_next_one_takes_away(
    at_work: tuple["subprocess.Popen[str]", int], plans: Path
) -> None:
    plan, compiling = at_work
    with compiled._part(plans) as other:  # two at once leave each other alone
        assert len(list(plans.iterdir())) == 2
        plan.send_signal(signal.SIGKILL)
        plan.wait(30)
        until(lambda: not is_alive(compiling), 10)
    assert len(list(plans.iterdir())) == 1
    with compiled._part(plans) as other:
        assert list(plans.iterdir()) == [other]
    assert list(plans.iterdir()) == []
