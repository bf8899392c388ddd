# SPDX-License-Identifier: Apache-2.0
"""Folders that exist only when they are complete.

A folder is built under a temporary name, its manifest last, and renamed.  One process at a time
builds in a cache directory; what others left half done is removed, never trusted.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.core.canonical import file_sha256, write_json_atomic
from jaxlm.core.errors import DataError

MANIFEST = "manifest.json"
READ_ONLY = (errno.EROFS, errno.EACCES)  # of a disk that can be read, and need not be written
_UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full, read-only or forbidden disk into a DataError."""
    try:
        yield
    except OSError as e:
        reason = e.strerror or e
        raise DataError(
            f"{path}: cannot be written ({reason}): free some space or set DataConfig.cache_dir"
        ) from e


@contextlib.contextmanager
def locked(cache_dir: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Waits for whoever builds in `cache_dir`, then removes what killed builders left there.

    On a read-only disk nobody builds: no lock; what is complete there can still be read.
    """
    with writing(cache_dir):
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            lock = os.open(cache_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as e:
            if e.errno not in READ_ONLY or not cache_dir.is_dir():
                raise
            lock = None
    if lock is None:
        yield
        return
    try:
        with writing(cache_dir):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            for unfinished in cache_dir.glob(_UNFINISHED + "*"):
                shutil.rmtree(unfinished)
        yield
    finally:
        os.close(lock)  # lets go of the lock, as does the end of the process


@contextlib.contextmanager
def building(final: Path, cache_dir: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` if the block ends well, and is removed if not.

    Call it under `locked`.  A damaged `final` is replaced.
    """
    with writing(cache_dir):
        tmp = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=cache_dir))
    try:
        yield tmp
        with writing(final):
            tmp.chmod(0o755)
            for path in [*tmp.iterdir(), tmp]:
                _sync(path)
            final.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(final, ignore_errors=True)
            tmp.rename(final)
            _sync(final.parent)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def ensure(
    folder: Path, cache_dir: Path, build: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """The manifest of `folder`, which `build` fills first where it is missing or damaged.

    `build(empty folder)` returns what the manifest shall hold besides the list of the contents.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        with building(folder, cache_dir) as tmp:
            _seal(tmp, build(tmp))
        manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder}: vanished while it was used: run again")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of `folder`; None unless each file that it names is there in its full size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        whole = all((folder / f["name"]).stat().st_size == f["bytes"] for f in manifest["contents"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return manifest if whole else None


def _seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes `manifest` with the size and sha256 of all that `folder` holds: the last file."""
    contents = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    ]
    with writing(folder):
        write_json_atomic(folder / MANIFEST, {**manifest, "contents": contents})


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
