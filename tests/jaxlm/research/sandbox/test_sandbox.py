# SPDX-License-Identifier: Apache-2.0
"""What honest code needs, and can.  What other code tries, and cannot: bench/attacks/walls.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlm.core.errors import RunError
from jaxlm.research.sandbox import sandbox, walls
from jaxlm.research.sandbox.sandbox import THREADS, Limits, Result
from tests.e2e.workshop import ROOT

pytestmark = pytest.mark.skipif(
    sandbox.level() != "namespaces and landlock", reason=f"this machine has {sandbox.level()}"
)
KERNEL = tuple(map(int, os.uname().release.split(".")[:2]))
SECRET = "sk-ant-secret-of-a-person"
SMALL = Limits(wall_s=20, cpu_s=10, memory_bytes=600 << 20, processes=20, disk_bytes=20 << 20)


def run(code: str, folder: Path, limits: Limits = SMALL, readable: tuple[Path, ...] = ()) -> Result:
    folder.mkdir(exist_ok=True)
    return sandbox.run([sys.executable, "-c", code], folder, readable, limits)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its folder, beside files that it must not reach."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "valid.txt").write_text(SECRET)
    (tmp_path / "evaluator.py").write_text("honest")
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    return tmp_path / "work"


def test_what_it_takes_too_much_of_is_cut(work: Path) -> None:
    found = run("while True: print('x' * 10000)", work, Limits(wall_s=60, output_bytes=100_000))
    assert found.ended_by == "output"
    assert len(found.output) <= 100_000


@pytest.mark.skipif(KERNEL < (6, 14), reason="an older kernel spares root; the watch remains")
def test_the_kernel_bounds_its_processes_before_the_watch_looks(work: Path) -> None:
    """Else a bomb takes all process numbers of the machine in a tenth of a second."""
    code = """
import os, time
for i in range(5000):
    if os.fork() == 0:
        open(str(i), "w").close()
        time.sleep(30)
"""
    found = run(code, work, Limits(wall_s=20, processes=20))
    assert found.code != 0
    assert 0 < len(list(work.iterdir())) < 20 * THREADS + walls.PIDS_RESERVED


def test_honest_code_computes_reads_and_writes(work: Path) -> None:
    data = work.parent / "private"
    code = (
        f"import numpy as np; print(open('{data}/valid.txt').read()); np.save('x.npy', np.eye(3))"
    )
    found = run(code, work, readable=(data,))
    assert (found.code, found.ended_by) == (0, None), found.output
    assert SECRET in found.output
    assert (work / "x.npy").exists()


def test_honest_code_compiles_with_jax(work: Path) -> None:
    code = "import jax, jax.numpy as jnp; print(jax.jit(lambda x: x @ x)(jnp.eye(4)).sum())"
    found = run(code, work, Limits(wall_s=120, cpu_s=60, memory_bytes=4 << 30, processes=64))
    assert (found.code, found.output.strip()) == (0, "4.0")


def test_without_walls_nothing_runs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stands in ("none", "landlock", "namespaces"):
        monkeypatch.setattr(sandbox, "level", lambda stands=stands: stands)
        with pytest.raises(RunError, match=f"this machine has {stands}; nothing was run"):
            run("print(1)", work)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_watch(work: Path, how: signal.Signals) -> None:
    """Whoever watches its limits is killed: it ends too, with all its children."""
    work.mkdir()
    says = "import os, time\nos.fork()\nwhile True: open('alive', 'w').close(); time.sleep(0.1)"
    code = f"""
import sys
from pathlib import Path
from jaxlm.research.sandbox import sandbox
sandbox.run([sys.executable, "-c", {says!r}], Path({str(work)!r}), [], sandbox.Limits())
"""
    watching = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    alive = work / "alive"
    end = time.monotonic() + 60
    while not alive.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert alive.exists()
    watching.send_signal(how)
    watching.wait()
    time.sleep(1.0)  # for the kernel
    alive.unlink()
    time.sleep(1.0)
    assert not alive.exists()
