# SPDX-License-Identifier: Apache-2.0
"""The real step for a topology: from the disk's cache, or compiled in a process of its own.

A folder of the cache is named by everything that the program depends on (identity.py), and is whole
while the sums in it are those of its files; what is not is compiled again.
"""

import contextlib
import dataclasses
import fcntl
import gzip
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.core.canonical import content_id, file_sha256, to_jsonable, write_json_atomic
from jaxlm.core.errors import ConfigError
from jaxlm.plan.identity import ROOT, program_config, surroundings
from jaxlm.plan.topology import Topology

PROGRAM, FACTS, FAILED, SUMS = "program.hlo.gz", "facts.json", "failed.json", "sums.json"
PART = ".part-"  # how the folder of a compiling process starts
INSTALL = {
    True: (
        "libtpu",
        "the TPU compiler is not installed; it needs no TPU: pip install 'jaxlm[tpu]'",
    ),
    False: ("jax_cuda13_plugin", "the CUDA plugin is not installed: pip install 'jaxlm[cuda]'"),
}
OOM = re.compile(r"(?:Used|required[^()]*\()\s*([\d.]+)([TGMK])")
Progress = Callable[[str, float | None, str], None]


class DoesNotFitError(Exception):
    """The compiler ran out of the chip's memory; `needed` bytes where it said so."""

    def __init__(self, needed: float | None, message: str) -> None:
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiling process left."""

    text: str
    facts: dict[str, Any]


def compile_step(config: RunConfig, topology: Topology, progress: Progress) -> Compiled:
    """The program and its buffers, compiled where it is not known yet.

    Raises DoesNotFitError, and ConfigError without a compiler or when it was killed.
    """
    folder = cache_folder(config, topology)
    if _is_whole(folder):
        return _read(folder)
    with _compiling(config, topology, progress) as part:
        write_json_atomic(part / SUMS, _sums(part))
        return _read(_keep(part, folder))


def save_step(config: RunConfig, topology: Topology, progress: Progress, path: Path) -> None:
    """Writes the executable to `path`; it is compiled in full.  Raises as `compile_step`."""
    with _compiling(config, topology, progress, path) as part:
        if (part / FAILED).exists():
            raise _does_not_fit(part)


def _read(folder: Path) -> Compiled:
    """What is kept there; raises DoesNotFitError where that is the answer."""
    if (folder / FAILED).exists():
        raise _does_not_fit(folder)
    with gzip.open(folder / PROGRAM, "rt", encoding="utf-8") as f:
        text = f.read()
    return Compiled(text, json.loads((folder / FACTS).read_text(encoding="utf-8")))


def _does_not_fit(folder: Path) -> DoesNotFitError:
    failed = json.loads((folder / FAILED).read_text(encoding="utf-8"))
    return DoesNotFitError(failed["needed"], failed["message"])


def _sums(folder: Path) -> dict[str, str]:
    """sha256 by name, of the files that are an answer."""
    found = [folder / name for name in (PROGRAM, FACTS, FAILED)]
    return {path.name: file_sha256(path) for path in found if path.exists()}


def _is_whole(folder: Path) -> bool:
    """Whether an answer is there, undamaged."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        return bool(sums) and sums == _sums(folder)
    except (OSError, ValueError, RecursionError):
        return False


def _keep(part: Path, folder: Path) -> Path:
    """Moves an answer to its place, away with what is damaged there; returns where it is now."""
    if not _is_whole(folder):  # else another process was faster
        shutil.rmtree(folder, ignore_errors=True)
    try:
        return part.replace(folder)
    except OSError:  # it cannot be kept, and is no worse for that
        return part


def cache_folder(config: RunConfig, topology: Topology) -> Path:
    """Where this program is kept, whether it is there or not."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "jaxlm" / "plans" / fingerprint(config, topology)[:32]


def fingerprint(config: RunConfig, topology: Topology) -> str:
    """sha256 of everything that the step's program depends on."""
    told = surroundings(lambda name: os.environ.get(name.upper(), ""))
    parts = {"config": program_config(config), "topology": topology.name}
    return content_id(parts | told)


@contextlib.contextmanager
def _compiling(
    config: RunConfig, topology: Topology, progress: Progress, save: Path | None = None
) -> Iterator[Path]:
    """What the compiling process left, in a folder beside the cache's; gone at the end."""
    package, install = INSTALL[topology.chip.is_tpu]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(install)
    with _ending_as_by_ctrl_c(), _part(cache_folder(config, topology).parent) as part:
        request = {
            "config": to_jsonable(config), "topology": topology.name,
            "save": str(save.resolve()) if save else None, "parent": os.getpid(),
        }  # fmt: skip
        (part / "request.json").write_text(json.dumps(request), encoding="utf-8")
        error = _run_child(part, topology.name, progress)
        if error is not None:
            _keep_failure(part, error)
        yield part


@contextlib.contextmanager
def _ending_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that nothing stays running or lying about."""
    is_ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _part(base: Path) -> Iterator[Path]:
    """A new folder in `base`, gone at the end; and those that killed processes left go, too.

    All who have one share a lock.  Who could have it alone knows that nobody needs what is there.
    """
    base.mkdir(parents=True, exist_ok=True)
    with base.with_name(f"{base.name}.lock").open("a") as lock:
        with contextlib.suppress(OSError):  # others compile, or the disk knows no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in base.glob(f"{PART}*"):
                shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        part = Path(tempfile.mkdtemp(dir=base, prefix=PART))
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _run_child(part: Path, name: str, progress: Progress) -> str | None:
    """None when it went well, else the last line of what it said."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "jaxlm.plan.compile_step"]
    command += [str(part / "request.json"), str(part)]
    start = time.monotonic()
    with (part / "log.txt").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                progress("compile the step", None, f"{name}, {time.monotonic() - start:.0f} s")
                try:
                    child.wait(0.5)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    progress("compile the step", 1.0, name)
    if child.returncode == 0:
        return None
    if child.returncode < 0:
        raise ConfigError(
            f"the compiler was killed (signal {-child.returncode}) at {name}; it may need more "
            "memory than this machine has: free some, then give the same command again"
        )
    lines = (part / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if "Error" in line and "common_lib" not in line]
    return (errors or lines or ["no message"])[-1]


def _keep_failure(part: Path, error: str) -> None:
    """A program that does not fit is an answer, and is kept; all else is raised."""
    if "RESOURCE_EXHAUSTED" not in error and "Ran out of memory" not in error:
        kind, _, message = error.partition(": ")
        if kind.rpartition(".")[2] == "ConfigError":
            raise ConfigError(message)
        raise ConfigError(f"the step does not compile: {error[:400]}")
    sizes = [float(n) * 1024 ** {"K": 1, "M": 2, "G": 3, "T": 4}[u] for n, u in OOM.findall(error)]
    failed = {"needed": max(sizes, default=None), "message": error[:2000]}
    (part / FAILED).write_text(json.dumps(failed), encoding="utf-8")
