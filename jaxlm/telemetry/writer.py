# SPDX-License-Identifier: Apache-2.0
"""telemetry.jsonl: one row per update, evaluation or event; append-only, crash-safe.

    {"kind": "train", "step": 12, "train/loss_nats": 6.1, ...}
    {"kind": "eval",  "step": 12, "eval/bpb": 2.4, ...}
    {"kind": "experts", "step": 10, "router/expert_tokens": [[31, 40], [29, 42]]}
    {"kind": "event", "step": 10, "event": "resumed", ...}

A row tagged N describes the update that produced step N, measured before it.  A resumed run may
write a step a second time; the last row of a kind and step counts.  Standard library only.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from jaxlm.core.errors import RunError, way_out
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
        self._path = run_dir / FILE_NAME
        _drop_torn_tail(self._path)
        self._file = open(self._path, "ab", buffering=0)

    def write(self, row: Row) -> None:
        """Raises KeyError for a metric name that the registry does not have, RunError on a full disk."""
        for name in row:
            if "/" in name:
                spec_of(name)
        data = json.dumps(row).encode() + b"\n"
        try:
            while data:  # a disk that fills up takes a part of the row first
                data = data[self._file.write(data) :]
        except OSError as e:
            raise RunError(
                f"cannot write {self._path}: {e.strerror}; {way_out(e)}, then give the same "
                "command again"
            ) from e

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
    """Rows in the order they were written; none without a file; a torn last line is left out.

    Raises RunError for a damaged line.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return
    with open(path, "rb") as f:
        for number, line in enumerate(f, start=1):
            if line.endswith(b"\n"):
                row = _parse(line, f"{path}:{number}")
                if kind in (None, row["kind"]):
                    yield row


def _parse(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row["step"], int) and row["kind"]:
            return row
    except (ValueError, KeyError):
        pass
    raise RunError(f"{where} is damaged: {line[:40]!r}; delete this line, then run again")


def latest_rows(run_dir: Path, kind: str) -> list[Row]:
    """One row per step, in order of step: what a resumed run wrote last replaces what came before."""
    by_step = {row["step"]: row for row in read_rows(run_dir, kind)}
    return [by_step[step] for step in sorted(by_step)]
