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


@functools.cache
def _rows() -> dict[tuple[str, ...], dict[str, Any]]:
    if not PATH.exists():
        return {}
    rows = json.loads(PATH.read_text(encoding="utf-8"))
    return {tuple(row[key] for key in KEYS): row["blocks"] for row in rows}


def tuned(operation: str, chip: str, shape_class: str, dtype: str) -> dict[str, Any]:
    """Sizes by name, those that the search has changed or confirmed; empty without a row."""
    return _rows().get((operation, chip, shape_class, dtype), {})
