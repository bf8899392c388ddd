# SPDX-License-Identifier: Apache-2.0
"""The run directory: the only contract between training and whoever reads it afterwards.

config.json  config.gin  env.json  tokenizer.model  telemetry.jsonl  checkpoints/
samples.jsonl  summary.json  report.html
"""

import contextlib
import fcntl
import json
import os
import platform
import socket
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from jaxlm.config import RunConfig, identity
from jaxlm.core.canonical import to_jsonable, write_atomic, write_json_atomic
from jaxlm.core.errors import ConfigError, RunError, way_out
from jaxlm.core.typed import from_dict
from jaxlm.telemetry.writer import read_rows
from jaxlm.train.code_id import code_id

CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.model"  # a copy, so that a run can be used without its data


def check_run_dir(path: Path, config: RunConfig) -> None:
    """Whether a run of `config` may begin or go on in a directory; writes nothing.

    Raises RunError for the directory of another config or of no run, a finished or damaged run,
    or one that cannot be written.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise RunError(
            f"run directory {str(path)!r}: its path is not UTF-8, and no checkpoint can be written "
            "there; choose another with --run DIR"
        ) from None
    there = next(p for p in (path, *path.parents) if p.exists())
    if not there.is_dir():
        raise RunError(f"run directory {path}: {there} is a file; choose another with --run DIR")
    if not os.access(there, os.W_OK):
        raise RunError(f"run directory {path}: {there} is read-only; choose another with --run DIR")
    if (path / "config.json").exists():
        _check_same_config(path, config)
    elif path.is_dir() and any(p.name != ".lock" for p in path.iterdir()):
        raise RunError(
            f"{path} is not empty and holds no run (no config.json); choose another with --run DIR"
        )
    summary = read_json(path / "summary.json") or {}
    if summary.get("status") == "completed":
        raise RunError(
            f"{path} is finished ({summary.get('step')} updates): see {path / 'report.html'}, "
            "or start another run with --run DIR"
        )
    for _ in read_rows(path):  # damage shows here, not after hours
        pass


def open_run_dir(path: Path, config: RunConfig, gin_text: str, data_id: str) -> IO[str]:
    """Creates or re-enters a run directory; returns the lock that must stay open.

    Raises RunError, before anything is written, as `check_run_dir`, and for a directory in use or
    a run on other data.
    """
    check_run_dir(path, config)
    env = read_json(path / "env.json") or {}
    if env.get("data_id") not in (None, data_id):
        raise RunError(
            f"{path} was trained on other data (id {env['data_id'][:12]}, now {data_id[:12]}): the text, "
            "the tokenizer or the packing changed; restore it, or choose another run with --run DIR"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as on_failure:
            lock = on_failure.enter_context(open(path / ".lock", "a+", encoding="utf-8"))
            _hold(lock, path)
            write_json_atomic(path / "config.json", config)
            write_atomic(path / "config.gin", gin_text.encode())
            (path / "summary.json").unlink(missing_ok=True)  # of a part that ended; written last
            on_failure.pop_all()
    except OSError as e:
        raise RunError(
            f"cannot write {path}: {e.strerror}; {way_out(e)}, or name another run with --run DIR"
        ) from e
    return lock


def _hold(lock: IO[str], path: Path) -> None:
    """Takes a lock that the kernel drops when the process ends, however it ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise RunError(
            f"{path} is in use by {holder}; stop it first, or choose another with --run DIR"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()


def _check_same_config(path: Path, config: RunConfig) -> None:
    old, new = (flat(identity(c)) for c in (load_config(path), config))
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    if changed:
        shown = ", ".join(f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RunError(
            f"{path} belongs to another config: {shown}{more}; choose another with --run DIR"
        )


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Values of nested objects by their dotted paths."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        k2: v2 for k, v in value.items() for k2, v2 in flat(v, f"{path}.{k}" if path else k).items()
    }


def load_config(path: Path) -> RunConfig:
    """The RunConfig of a run directory.  Raises RunError when there is none, or a damaged one."""
    values = read_json(path / "config.json", "put a copy of it back")
    if values is None:
        what = "is no run directory: it has no config.json" if path.exists() else "does not exist"
        raise RunError(f"{path} {what}; pass a directory that `jaxlm train` made")
    try:
        return from_dict(RunConfig, values)
    except ConfigError as e:
        raise RunError(
            f"{path / 'config.json'} is damaged, or of another version of jaxlm: {e}"
        ) from e


def read_json(path: Path, mend: str = "delete it, then run again") -> dict[str, Any] | None:
    """A file's JSON object, or None when there is no file.  Raises RunError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as e:
        raise RunError(f"{path} is damaged ({e}); {mend}") from e
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged (no JSON object); {mend}")
    return value


def append_json(path: Path, row: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(to_jsonable(row)) + "\n")


def environment(**facts: Any) -> dict[str, Any]:
    """What env.json records: code, versions and machine, and the facts given."""
    packages = ("jaxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions: dict[str, str | None] = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    machine = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    return {"code": code_id(), "versions": versions, "machine": machine, **facts}
