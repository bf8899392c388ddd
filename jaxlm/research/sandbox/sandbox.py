# SPDX-License-Identifier: Apache-2.0
"""Runs a command that nobody trusts: what it may read, write, use, and for how long.

Two walls, one inside the other: namespaces of its own (users, processes, network, mounts: `unshare` of
util-linux), then Landlock and limits (walls.py).  Outside, a watch counts memory, processes and bytes
on disk, and ends the whole tree.  Which walls stood is part of the result; with none, nothing runs.
Its processor time is counted from outside too: no clock of its own is asked.
Standard library only.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxlm.core.errors import RunError
from jaxlm.research.sandbox import walls

Process = subprocess.Popen[bytes]
Talk = Callable[[Process], None]  # over its stdin and stdout
Level = Literal["namespaces and landlock", "landlock", "namespaces", "none"]
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/dev/null",
          "/dev/urandom", "/dev/zero", "/sys/devices/system", "/proc")  # fmt: skip
UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--ipc", "--uts", "--fork",
           "--mount-proc", "--kill-child=KILL")  # fmt: skip
# Goes before a command: it ends with the process that watches it, however that ends.
TIE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else it has ended already
    os.execvp(sys.argv[2], sys.argv[2:])
"""
LOOK_S = 0.1  # between two looks of the watch
# Of each process, on average; where the kernel bounds all together, since the watch may come too late.
THREADS = max(16, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Of the whole tree of processes."""

    wall_s: float = 600.0
    cpu_s: int = 1200  # of each process
    memory_bytes: int = 8 << 30
    processes: int = 64
    disk_bytes: int = 1 << 30  # in its folder
    output_bytes: int = 1 << 20


@dataclasses.dataclass(frozen=True)
class Result:
    """How it ended.  `ended_by` names the limit that ended it, or None."""

    code: int
    output: str
    ended_by: str | None
    level: Level
    cpu_s: float  # of all its processes, as last seen


@functools.cache
def level() -> Level:
    """The walls that stand on this machine, found by trying them."""
    has_landlock = walls.version() > 0
    has_namespaces = shutil.which("unshare") is not None and (
        subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    )
    if has_landlock and has_namespaces:
        return "namespaces and landlock"
    return "landlock" if has_landlock else "namespaces" if has_namespaces else "none"


def run(
    command: Sequence[str], folder: Path, readable: Sequence[Path], limits: Limits,
    is_weaker_allowed: bool = False, talk: Talk | None = None,
) -> Result:  # fmt: skip
    """Runs `command` in `folder`, the only place where it can write.

    readable:           what it may read besides the system and this Python
    is_weaker_allowed:  go on with one wall where the machine lacks the other
    talk:               speaks with it over pipes; what it raises ends the command.  Then only
                        stderr is output.  None: no input, and stdout is output too

    Raises RunError where no wall stands, or only one and that was not allowed.
    """
    stands = level()
    if stands == "none" or (stands != "namespaces and landlock" and not is_weaker_allowed):
        raise RunError(
            f"a sandbox needs namespaces and Landlock, this machine has {stands}; nothing was run"
        )
    folder = folder.resolve()
    with tempfile.TemporaryDirectory() as aside, open(Path(aside) / "output", "w+b") as output:
        spec = Path(aside) / "spec.json"
        spec.write_text(json.dumps(_spec(command, folder, readable, limits, stands)))
        tie = (sys.executable, "-I", "-S", "-c", TIE, str(os.getpid()))
        shell = UNSHARE if "namespaces" in stands else ()
        pipe = subprocess.DEVNULL if talk is None else subprocess.PIPE
        process = subprocess.Popen(
            [*tie, *shell, sys.executable, "-I", "-S", str(Path(walls.__file__)), str(spec)],
            stdin=pipe, stdout=output if talk is None else pipe, stderr=output,
            env=_environment(folder), start_new_session=True,
        )  # fmt: skip
        with concurrent.futures.ThreadPoolExecutor(1) as pool, process:
            watch = pool.submit(_watch, process, folder, Path(output.name), limits)
            try:
                if talk is not None:
                    talk(process)
            except BaseException:
                kill(process)
                raise
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            ended_by, cpu = watch.result()
        output.seek(0)
        text = output.read(limits.output_bytes).decode("utf-8", "replace")
    return Result(process.returncode, text, ended_by, stands, cpu)


def _spec(
    command: Sequence[str], folder: Path, readable: Sequence[Path], limits: Limits, stands: Level
) -> dict[str, Any]:
    python = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1])}
    return {
        "command": list(command),
        "folder": str(folder),
        "readable": [*SYSTEM, *sorted(python), *(str(path.resolve()) for path in readable)],
        "writable": [str(folder), "/dev/null"],
        "landlock": "landlock" in stands,
        "namespaces": "namespaces" in stands,
        "cpu_s": limits.cpu_s,
        "file_bytes": limits.disk_bytes,
        "tasks": THREADS * limits.processes,
        "environment": _environment(folder),
    }


def _environment(folder: Path) -> dict[str, str]:
    """All that it is told: no key of anybody's, no home but its folder."""
    return {
        "PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8",
        "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip


def _watch(
    process: Process, folder: Path, output: Path, limits: Limits
) -> tuple[str | None, float]:
    """Waits for the end, and brings it about where a limit is passed: that limit, and CPU seconds."""
    end, ended_by, cpu = time.monotonic() + limits.wall_s, None, 0.0
    try:
        while process.poll() is None and ended_by is None:
            time.sleep(LOOK_S)
            cpu = max(cpu, cpu_s(process.pid))
            if time.monotonic() > end:
                ended_by = "wall time"
            elif output.stat().st_size > limits.output_bytes:
                ended_by = "output"
            elif _disk(folder) > limits.disk_bytes:
                ended_by = "disk"
            else:
                pids = list(itertools.islice(_tree(process.pid), limits.processes + 1))
                if len(pids) > limits.processes:
                    ended_by = "processes"
                elif sum(map(_memory, pids)) > limits.memory_bytes:
                    ended_by = "memory"
    finally:
        kill(process)
    return ended_by, cpu


def cpu_s(pid: int) -> float:
    """Processor seconds of a process, its children, and those that they waited for."""
    ticks = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError, ValueError):
            stat = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, stat[11:15]))  # its own, in user and system mode, and those
    return ticks / os.sysconf("SC_CLK_TCK")


def kill(process: Process) -> None:
    """The first process of a namespace takes all others with it; else each is killed by name."""
    _kill_all(itertools.islice(_tree(process.pid), 1, 2))
    _kill_all(reversed(list(_tree(process.pid))))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _tree(root: int) -> Iterator[int]:
    """The process and its children's children."""
    yield root
    with contextlib.suppress(OSError, ValueError):
        for task in Path(f"/proc/{root}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _memory(pid: int) -> int:
    """Resident bytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _disk(folder: Path) -> int:
    total = 0
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total
