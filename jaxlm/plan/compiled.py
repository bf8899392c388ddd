# SPDX-License-Identifier: Apache-2.0
"""The real step for a topology: from the disk's cache, or compiled in a process of its own.

A folder of the cache is named by everything that the program depends on: the config's fields, the
topology, the compiler's versions and flags, and the source of all that is traced.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.core.canonical import content_id, to_jsonable
from jaxlm.core.errors import ConfigError
from jaxlm.plan.topology import Topology
from jaxlm.train.compiler import from_environment

ROOT = Path(__file__).parents[2]
TRACED = (
    "core",
    "model",
    "nn",
    "optim",
    "sharding",
    "train",
    "loss.py",
    "evaluate.py",
    "config.py",
)
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
    if not any((folder / name).exists() for name in ("facts.json", "failed.json")):
        with _compiling(config, topology, progress) as part:
            if not folder.exists():  # another process may have been faster
                part.replace(folder)
    if (folder / "failed.json").exists():
        raise _does_not_fit(folder)
    with gzip.open(folder / "program.hlo.gz", "rt", encoding="utf-8") as f:
        text = f.read()
    return Compiled(text, json.loads((folder / "facts.json").read_text(encoding="utf-8")))


def save_step(config: RunConfig, topology: Topology, progress: Progress, path: Path) -> None:
    """Writes the executable to `path`; it is compiled in full.  Raises as `compile_step`."""
    with _compiling(config, topology, progress, path) as part:
        if (part / "failed.json").exists():
            raise _does_not_fit(part)


def _does_not_fit(folder: Path) -> DoesNotFitError:
    failed = json.loads((folder / "failed.json").read_text(encoding="utf-8"))
    return DoesNotFitError(failed["needed"], failed["message"])


def cache_folder(config: RunConfig, topology: Topology) -> Path:
    """Where this program is kept, whether it is there or not."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "jaxlm" / "plans" / fingerprint(config, topology)[:32]


def fingerprint(config: RunConfig, topology: Topology) -> str:
    """sha256 of everything that the step's program depends on."""
    parts = {
        "config": program_config(config), "topology": topology.name, "versions": versions(),
        "source": source(), "options": from_environment(),
    }  # fmt: skip
    return content_id(parts)


def program_config(config: RunConfig) -> dict[str, Any]:
    """The fields that shape the program: learning rates, lengths and seeds are its inputs."""
    values = to_jsonable(config)
    optim, train, data = values["optim"], values["train"], values["data"]
    return {
        "model": values["model"],
        "mesh": values["mesh"],
        "optim": {k: optim[k] for k in ("name", "schedule", "muon_steps")}
        | {"groups": [g["pattern"] for g in optim["groups"]]},
        "train": {k: train[k] for k in ("num_micro_batches", "offload_optimizer", "probe_every")},
        "data": {k: data[k] for k in ("seq_len", "batch_size")},
    }


def versions() -> dict[str, str]:
    """Of all that turns the step into a program."""
    found = {"flags": os.environ.get("LIBTPU_INIT_ARGS", "")}
    for package in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def source() -> str:
    """A digest of the code that is traced."""
    files = [ROOT / "jaxlm" / name for name in TRACED] + [ROOT / "pallas_kernels"]
    found = [f for path in files for f in ([path] if path.is_file() else path.rglob("*"))]
    digest = hashlib.sha256()
    for path in sorted(p for p in found if p.suffix in (".py", ".json")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _compiling(
    config: RunConfig, topology: Topology, progress: Progress, save: Path | None = None
) -> Iterator[Path]:
    """What the compiling process left, in a folder beside the cache's; gone at the end."""
    package, install = INSTALL[topology.chip.is_tpu]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(install)
    base = cache_folder(config, topology).parent
    base.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=base, prefix=".part-"))
    try:
        saved = str(save.resolve()) if save else None
        request = {"config": to_jsonable(config), "topology": topology.name, "save": saved}
        (part / "request.json").write_text(json.dumps(request), encoding="utf-8")
        error = _run_child(part, topology.name, progress)
        if error is not None:
            _keep_failure(part, error)
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
    (part / "failed.json").write_text(json.dumps(failed), encoding="utf-8")
