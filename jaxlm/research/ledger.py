# SPDX-License-Identifier: Apache-2.0
"""The ledger: an append-only file of records, each sealed to the one before by its hash.

    {"seq": 3, "time": 1.7e9, "kind": "run", "body": {...}, "previous": "ab..", "hash": "cd.."}

hash = sha256 of the record without it, in canonical JSON.  LEDGER.head beside the file says how
many records there are and the last hash, so that a dropped tail shows.  A record is on disk before
`append` returns; a crash in the middle of one leaves a torn last line, which the next append
removes.  Nothing is ever rewritten or deleted.  Standard library only.
"""

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.canonical import canonical_json, content_id, to_jsonable, write_json_atomic
from jaxlm.core.errors import RunError

FIRST = "0" * 64  # `previous` of the first record


@dataclasses.dataclass(frozen=True)
class Record:
    """One line.  `body` is what was found or decided; time and place in the chain stand apart."""

    seq: int
    time: float  # unix seconds
    kind: str
    body: dict[str, Any]
    previous: str
    hash: str


class _KnownError(Exception):
    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__()
        self.body = body


class Ledger:
    """Records of one project, oldest first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Record]:
        """Raises RunError at a line that is no record."""
        if self.path.exists():
            for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], start=1):
                yield parse(line, f"{self.path}:{number}")

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Bodies of all records of a kind."""
        return [record.body for record in self if record.kind == kind]

    def append(
        self, kind: str, body: Any, guard: Callable[[list[Record]], object] | None = None
    ) -> Record:
        """Writes a record for good; one process at a time.  Raises RunError for a full disk.

        guard: is given all records, while nobody else can write; what it raises keeps this one out
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _drop_torn_tail(file)
                records = list(self)
                if guard is not None:
                    guard(records)
                last = records[-1] if records else None
                record = seal(
                    last.seq + 1 if last else 0,
                    time.time(),
                    kind,
                    to_jsonable(body),
                    last.hash if last else FIRST,
                )
                file.write(canonical_json(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                write_json_atomic(self.head_path, {"records": record.seq + 1, "hash": record.hash})
        except OSError as e:
            raise RunError(f"cannot write {self.path}: {e.strerror}; make room, then again") from e
        return record

    def append_once(self, kind: str, body: Any, key: Sequence[str]) -> dict[str, Any]:
        """Writes a record unless one of its kind has the same `key` fields; the body that is there.

        Whoever carries out the same protocol at the same time may have been faster.
        """
        plain: dict[str, Any] = to_jsonable(body)

        def is_new(records: Iterable[Record]) -> None:
            for record in records:
                if record.kind == kind and all(record.body.get(k) == plain[k] for k in key):
                    raise _KnownError(record.body)

        try:
            is_new(self)  # what is there needs no right to write
            return self.append(kind, plain, is_new).body
        except _KnownError as e:
            return e.body

    @property
    def head_path(self) -> Path:
        return self.path.with_suffix(".head")


def seal(seq: int, when: float, kind: str, body: dict[str, Any], previous: str) -> Record:
    """A record with its hash."""
    unsealed: dict[str, Any] = {
        "seq": seq,
        "time": when,
        "kind": kind,
        "body": body,
        "previous": previous,
    }
    return Record(**unsealed, hash=content_id(unsealed))


def parse(line: bytes, where: str) -> Record:
    """Raises RunError for what is no record; says nothing about its hash."""
    try:
        return Record(**json.loads(line))
    except (ValueError, TypeError) as e:
        raise RunError(
            f"{where} is no record of a ledger ({str(e)[:60]}); `jaxlm research verify` says more"
        ) from e


def _drop_torn_tail(file: Any) -> None:
    file.seek(0)
    data = file.read()
    if data and not data.endswith(b"\n"):
        file.truncate(data.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
