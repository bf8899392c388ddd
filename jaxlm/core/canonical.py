# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON and the ids made from it: equal values give equal bytes, so equal hashes.

Standard library only: the research half imports this without importing jax.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any


def to_jsonable(value: Any) -> Any:
    """Frozen dataclasses, tuples and paths as plain JSON values; raises TypeError for the rest."""
    if value is None or isinstance(value, bool | int | float | str):  # most are
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"not representable in JSON: {type(value).__name__} {value!r}")


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, no NaN: one text for one value."""
    return plain_json(to_jsonable(value))


def plain_json(value: Any) -> str:
    """`canonical_json` of what came out of JSON: several times faster."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_id(value: Any) -> str:
    """sha256 of the canonical JSON, as 64 hex digits."""
    return text_id(canonical_json(value))


def text_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Writes indented JSON as `write_atomic`."""
    text = json.dumps(to_jsonable(value), indent=2, sort_keys=True) + "\n"
    write_atomic(path, text.encode())


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes so that a crash or a full disk leaves the old file or the new one, never half of one.

    A device or a pipe is written into: a rename would put a file in its place.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(tmp, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
