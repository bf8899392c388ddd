# SPDX-License-Identifier: Apache-2.0
"""What code that nobody trusts tries, and cannot; what honest code needs, and can."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from jaxlm.core.errors import RunError
from jaxlm.research.sandbox import sandbox, walls
from jaxlm.research.sandbox.sandbox import THREADS, Limits, Result

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


LISTENER = "import socket; s = socket.create_connection(('127.0.0.1', {port}), 2); s.send(b'x')"
# code that prints what it got, or fails
THEFTS = {
    "environment": "import os; print(os.environ)",
    "parent's environment": "import os; print(open(f'/proc/{os.getppid()}/environ').read())",
    "everybody's environment": "import glob\nfor p in glob.glob('/proc/[0-9]*/environ'): print(open(p).read())",
    "validation data": "print(open('../private/valid.txt').read())",
    "by absolute path": "print(open('{root}/private/valid.txt').read())",
    "by symbolic link": "import os; os.symlink('{root}/private', 'x'); print(open('x/valid.txt').read())",
    "by hard link": "import os; os.link('{root}/private/valid.txt', 'x'); print(open('x').read())",
    "by root of a process": "print(open('/proc/1/root{root}/private/valid.txt').read())",
    "by descriptor": "import os\nfor i in range(3, 300):\n try: print(os.read(i, 99))\n except OSError: pass",
    "by mount": "import os; os.system('mount --bind {root}/private . && cat valid.txt')",
    "by a new namespace": "import os; os.system('unshare -Urm cat {root}/private/valid.txt')",
    "home": "import os; print(os.listdir(os.path.expanduser('~root'))); open('/root/.ssh/id', 'w')",
    "by chroot": "import os; os.chroot('{root}/private'); print(open('/valid.txt').read())",
}


@pytest.mark.parametrize("name", THEFTS)
def test_what_it_must_not_read_it_cannot(work: Path, name: str) -> None:
    found = run(THEFTS[name].replace("{root}", str(work.parent)), work)
    assert SECRET not in found.output


DAMAGE = {
    "the evaluator": "open('{root}/evaluator.py', 'w').write('1')",
    "the evaluator, by link": "import os; os.symlink('{root}', 'x'); open('x/evaluator.py', 'w').write('1')",
    "by renaming": "import os; open('x', 'w').write('1'); os.replace('x', '{root}/evaluator.py')",
    "by removing": "import os; os.remove('{root}/evaluator.py')",
    "by truncating": "import os; os.truncate('{root}/evaluator.py', 0)",
    "its rights": "import os; os.chmod('{root}/evaluator.py', 0)",
    "its age": "import os; os.utime('{root}/evaluator.py', (0, 0))",
    "its rights, after a thaw": "import os, ctypes, struct; c = ctypes.CDLL(None)\n"
    "a = ctypes.create_string_buffer(struct.pack('QQQQ', 0, 1, 0, 0), 32)\n"
    "c.syscall(442, -100, b'/', 0x8000, a, ctypes.c_size_t(32)); os.chmod('{root}/evaluator.py', 0)",
    "the interpreter": "import sys, os; open(os.path.join(sys.prefix, 'x.pth'), 'w').write('import os')",
    "a process outside": "import os; os.kill({pid}, 9)",
    "its parent": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_it_must_not_change_it_cannot(work: Path, name: str) -> None:
    evaluator = work.parent / "evaluator.py"
    before = evaluator.stat().st_mode, evaluator.stat().st_mtime
    code = DAMAGE[name].replace("{root}", str(work.parent)).replace("{pid}", str(os.getpid()))
    run(code, work)
    assert evaluator.read_text() == "honest"
    assert (evaluator.stat().st_mode, evaluator.stat().st_mtime) == before
    assert not list(Path(sys.prefix).glob("x.pth"))


def test_it_reaches_no_network(work: Path) -> None:
    with socket.socket() as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.5)
        datagrams.bind(("127.0.0.1", 0))
        datagrams.settimeout(0.5)
        assert run(LISTENER.format(port=server.getsockname()[1]), work).code != 0
        port = datagrams.getsockname()[1]
        run(f"import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port}))", work)
        for caught in (server.accept, lambda: datagrams.recv(1)):
            with pytest.raises(TimeoutError):
                caught()


GREED = {
    "wall time": "import time; time.sleep(60)",
    "processes": "import os\nwhile True: os.fork()",
    "disk": "import os\nfor i in range(999): open(f'f{i}', 'wb').write(bytes(1 << 20))",
    "memory": "x = []\nwhile True: x.append(bytearray(50 << 20))",
    "output": "while True: print('x' * 10000)",
}


@pytest.mark.parametrize("name", GREED)
def test_what_it_takes_too_much_of_ends_it(work: Path, name: str) -> None:
    limits = Limits(
        wall_s=3 if name == "wall time" else 60, cpu_s=30, memory_bytes=600 << 20, processes=20,
        disk_bytes=20 << 20, output_bytes=100_000,
    )  # fmt: skip
    found = run(GREED[name], work, limits)
    assert found.ended_by == name
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


def test_nothing_of_it_outlives_it(work: Path) -> None:
    code = "import os, time\nif os.fork() == 0:\n os.setsid()\n time.sleep(3)\n open('late', 'w')"
    assert run(code, work).code == 0
    time.sleep(4)
    assert not (work / "late").exists()


def test_a_large_file_and_endless_work_end_it(work: Path) -> None:
    assert run("open('f', 'wb').write(bytes(40 << 20))", work).code != 0
    limits = Limits(wall_s=60, cpu_s=1)
    assert run("while True: pass", work, limits).code != 0


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
