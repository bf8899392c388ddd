# SPDX-License-Identifier: Apache-2.0
"""telemetry.jsonl: one row per update, evaluation or event; append-only, crash-safe.

    {"kind": "train", "step": 12, "train/loss_nats": 6.1, ...}
    {"kind": "eval",  "step": 12, "eval/bpb": 2.4, ...}
    {"kind": "event", "step": 10, "event": "resumed", ...}

A row tagged N describes the update that produced step N, measured before it.  A resumed run may
write a step a second time; the last row of a kind and step counts.  Standard library only.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from jaxlm.telemetry.registry import spec_of

Row = dict[str, Any]
FILE_NAME = "telemetry.jsonl"


class Writer(Protocol):
    """Takes rows; JSONL is the source of truth, other writers are copies."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """Appends rows, each flushed, so that a killed run loses at most the row being written."""

    def __init__(self, run_dir: Path) -> None:
        path = run_dir / FILE_NAME
        _drop_torn_tail(path)
        self._file = open(path, "a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Raises KeyError for a metric name that the registry does not have."""
        for name in row:
            if "/" in name:
                spec_of(name)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_torn_tail(path: Path) -> None:
    """Cuts the half-written last line that a crash can leave."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def read_rows(run_dir: Path, kind: str | None = None) -> Iterator[Row]:
    """Rows in the order they were written; none without a file; a torn last line is left out."""
    if not (run_dir / FILE_NAME).exists():
        return
    with open(run_dir / FILE_NAME, encoding="utf-8") as f:
        for line in f:
            if line.endswith("\n"):
                row = json.loads(line)
                if kind in (None, row["kind"]):
                    yield row


def latest_rows(run_dir: Path, kind: str) -> list[Row]:
    """One row per step, in order of step: what a resumed run wrote last replaces what came before."""
    by_step = {row["step"]: row for row in read_rows(run_dir, kind)}
    return [by_step[step] for step in sorted(by_step)]
