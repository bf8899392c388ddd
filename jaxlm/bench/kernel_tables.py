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

from jaxlm.core.canonical import write_atomic
from jaxlm.core.errors import ConfigError
from pallas_kernels.tuning.table import tuned

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
    """Raises ConfigError for a file that holds no rows."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except ValueError as e:
        raise ConfigError(f"{path} is damaged: {e}; give it back as it came") from e
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path} is damaged: no list of rows; give it back as it came")
    return rows


def check_tables() -> None:
    """Raises ConfigError for a damaged table of block sizes, before anything is compiled."""
    read_rows(PUBLIC)
    try:
        tuned("", "", "", "")
    except ValueError as e:
        raise ConfigError(str(e)) from e


def keep_row(path: Path, row: Row, keys: tuple[str, ...]) -> None:
    """Puts a row in the place of the one of the same keys; a row a line, sorted."""
    rows = [old for old in read_rows(path) if any(old.get(key) != row[key] for key in keys)]
    rows = sorted([*rows, row], key=lambda row: [str(row.get(key)) for key in keys])
    text = ",\n".join(json.dumps(row) for row in rows)
    write_atomic(path, f"[\n{text}\n]\n".encode())


@functools.cache
def _public() -> dict[tuple[str, str, str], dict[str, int]]:
    return {(r["kernel"], r["shape"], r["chip"]): r["blocks"] for r in read_rows(PUBLIC)}


def public_blocks(kernel: str, shape: str, chip: str) -> dict[str, int] | None:
    """The best of those tried; None where none was."""
    return _public().get((kernel, shape, chip))
