# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's manifest: checksums of its files, by which anybody can tell that they are whole.

Standard library only: who verifies a ledger needs no jax.
"""

import concurrent.futures
import json
import zlib
from pathlib import Path
from typing import Any

from jaxlm.core.errors import CheckpointError

MANIFEST = "manifest.json"
HOST = "host.npz"
FORMAT = 1
SEALED = ("format", "files", "leaves", "step", "data_id")  # what no manifest lacks


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all as sealed.  Raises CheckpointError."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path / MANIFEST} cannot be read: {first_line(e)}") from e
    if not isinstance(manifest, dict) or any(manifest.get(key) in (None, {}) for key in SEALED):
        raise CheckpointError(f"{path / MANIFEST} is damaged: it lacks one of {', '.join(SEALED)}")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest['format']}, this version reads {FORMAT}"
        )
    found = {f"state/{name}": each for name, each in checksums(path / "state").items()}
    wanted = {f"state/{name}": each for name, each in manifest["files"].items()}
    if "host" in manifest:
        wanted[HOST] = manifest["host"]
        found |= {HOST: checksum(path / HOST)} if (path / HOST).exists() else {}
    for name, want in wanted.items():
        if found.get(name) != want:
            what = (
                "is missing"
                if name not in found
                else f"is damaged: {found[name]}, sealed as {want}"
            )
            raise CheckpointError(f"{path / name} {what}")
    return manifest


def manifest(path: Path, **facts: Any) -> dict[str, Any]:
    """What seals the files that are there now."""
    host = {"host": checksum(path / HOST)} if (path / HOST).exists() else {}
    return {"format": FORMAT, **facts, "files": checksums(path / "state"), **host}


def checksums(root: Path) -> dict[str, dict[str, int]]:
    """{size, crc32} of every file below a folder, by name, read in parallel."""
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(lambda name: checksum(root / name), names), strict=True))


def checksum(path: Path) -> dict[str, int]:
    crc = size = 0
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"crc32": crc, "size": size}


def first_line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][
        :200
    ]
