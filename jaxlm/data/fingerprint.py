# SPDX-License-Identifier: Apache-2.0
"""sha256 of source files, taken again only where size, a time of change or the inode differ.

The time that a program can set (mtime) stays when a file is moved or unpacked over another; the
kernel's own (ctime) and the inode do not.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from jaxlm.core.canonical import file_sha256, write_json_atomic
from jaxlm.data.cache import READ_ONLY, writing
from jaxlm.data.source import readable


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file as it was when its hash was taken."""

    path: str
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str


def fingerprint(files: Sequence[Path], memory: Path) -> tuple[list[SourceFile], str | None]:
    """The files with their hashes, and what changed since `remember` in a few words, or None."""
    known = _recall(memory)
    found = [_hash(path, known.get(str(path))) for path in files]
    return found, _what_changed(known, {f.path: f for f in found}) if known else None


def remember(found: list[SourceFile], memory: Path) -> None:
    """Keeps the hashes in the file `memory` for the next call of `fingerprint`.

    Not on a read-only disk: whoever cannot remember takes the hashes again.
    """
    if found != list(_recall(memory).values()):
        with writing(memory):
            try:
                memory.parent.mkdir(parents=True, exist_ok=True)
                write_json_atomic(memory, found)
            except OSError as e:
                if e.errno not in READ_ONLY:
                    raise


def _recall(memory: Path) -> dict[str, SourceFile]:
    try:
        return {f["path"]: SourceFile(**f) for f in json.loads(memory.read_text())}
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # none yet, or damaged: hash again
        return {}


def _hash(path: Path, known: SourceFile | None) -> SourceFile:
    with readable(path):
        stat = path.stat()
        found = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        if known and SourceFile(*found, known.sha256) == known:
            return known
        return SourceFile(*found, file_sha256(path))


def _what_changed(old: dict[str, SourceFile], new: dict[str, SourceFile]) -> str | None:
    changes = [f"{path} was removed" for path in old if path not in new]
    changes += [f"{path} was added" for path in new if path not in old]
    common = old.keys() & new.keys()
    changes += [f"{p} changed" for p in sorted(common) if old[p].sha256 != new[p].sha256]
    others = len(changes) - 1
    more = f" and {others} more change{'s' * (others > 1)}" if others > 0 else ""
    return changes[0] + more if changes else None
