# SPDX-License-Identifier: Apache-2.0
"""Block sizes that a search found, with the score and the compiler behind each (blocks.json).

A row: operation, chip, shape_class, dtype, blocks, predicted_ms, versions.  The classes are those
of the module of an operation beside this one, whose rules hold where there is no row.
`jaxlm bench kernels --tune` writes rows.
"""

import functools
import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("blocks.json")
KEYS = ("operation", "chip", "shape_class", "dtype")
SIZES = {  # that a row may give, by operation
    "attention_forward": (
        "queries", "keys", "diagonal", "bounded_diagonal", "mxu_sums", "split_scale", "parts",
    ),
    "attention_backward": ("block_kv", "tile_q", "block_diag"),
    "cross_entropy": ("rows", "block_v"),
    "grouped_matmul_forward": ("rows", "columns"),
    "grouped_matmul_dx": ("rows", "columns"),
    "grouped_matmul_dw": ("rows", "columns"),
}  # fmt: skip


@functools.cache
def _rows() -> dict[tuple[str, ...], dict[str, Any]]:
    if not PATH.exists():
        return {}
    try:
        rows = json.loads(PATH.read_text(encoding="utf-8"))
        _check(rows)
    except ValueError as e:
        raise ValueError(f"{PATH} is damaged: {e}; give it back as it came") from e
    return {tuple(row[key] for key in KEYS): row["blocks"] for row in rows}


def _check(rows: Any) -> None:
    """Raises ValueError for what is no list of rows, or gives a kernel a size that it has not."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("no list of rows")
    for i, row in enumerate(rows, 1):
        for key in KEYS:
            if not isinstance(row.get(key), str):
                raise ValueError(f"row {i} has no {key!r}")
        if not isinstance(row.get("blocks"), dict):
            raise ValueError(f"row {i} has no 'blocks'")
        known = SIZES.get(row["operation"], ())
        for name, size in row["blocks"].items():
            if name not in known:
                raise ValueError(f"row {i} has a size {name!r}; allowed: {', '.join(known)}")
            if not isinstance(size, int) or size < 0:
                raise ValueError(f"row {i} has {size!r} for {name}; allowed: whole numbers")


def tuned(operation: str, chip: str, shape_class: str, dtype: str) -> dict[str, Any]:
    """Sizes by name, those that the search has changed or confirmed; empty without a row.

    Raises ValueError for a damaged table.
    """
    return _rows().get((operation, chip, shape_class, dtype), {})
