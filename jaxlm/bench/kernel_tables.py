# SPDX-License-Identifier: Apache-2.0
"""Best known block sizes of public kernels, from a table in the repository (public_kernels.json).

A row: kernel, shape, chip, blocks, predicted_ms, tried (how many block sizes), versions.
`jaxlm bench kernels --sweep` writes it.
"""

import functools
import importlib.metadata
import json
from pathlib import Path
from typing import Any

PUBLIC = Path(__file__).with_name("public_kernels.json")
Row = dict[str, Any]


def versions() -> str:
    """Of everything that a score depends on beside our own code."""
    found = []
    for package in ("jax", "libtpu", "tokamax"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def read_rows(path: Path) -> list[Row]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def keep_row(path: Path, row: Row, keys: tuple[str, ...]) -> None:
    """Puts a row in the place of the one of the same keys; a row a line, sorted."""
    rows = [old for old in read_rows(path) if any(old[key] != row[key] for key in keys)]
    rows = sorted([*rows, row], key=lambda row: [str(row[key]) for key in keys])
    text = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8")


@functools.cache
def _public() -> dict[tuple[str, str, str], dict[str, int]]:
    return {(r["kernel"], r["shape"], r["chip"]): r["blocks"] for r in read_rows(PUBLIC)}


def public_blocks(kernel: str, shape: str, chip: str) -> dict[str, int] | None:
    """The best of those tried; None where none was."""
    return _public().get((kernel, shape, chip))
