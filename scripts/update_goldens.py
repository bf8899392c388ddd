# SPDX-License-Identifier: Apache-2.0
"""Writes tests/goldens/configs/ anew: what every shipped config resolves to.

    python scripts/update_goldens.py

A diff of these files shows a reviewer what a changed default does to each run.
"""

import dataclasses
from pathlib import Path

from jaxlm.cli.gin_edge import load
from jaxlm.config import resolve
from jaxlm.core.canonical import to_jsonable, write_json_atomic

ROOT = Path(__file__).parents[1]
GOLDENS = ROOT / "tests" / "goldens" / "configs"


def resolved_dump(path: Path) -> dict:
    """The config with every default filled in, its id, and what follows from it on 8 devices."""
    config = load([str(path)], [])
    resolved = dataclasses.asdict(resolve(config, num_devices=8 if config.mesh.fsdp == -1 else 1))
    return to_jsonable({"config": config, "config_id": config.config_id, "resolved": resolved})


if __name__ == "__main__":
    for path in sorted((ROOT / "configs").glob("*.gin")):
        write_json_atomic(GOLDENS / f"{path.stem}.json", resolved_dump(path))
        print(f"wrote {GOLDENS / path.stem}.json")
