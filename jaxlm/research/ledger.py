# SPDX-License-Identifier: Apache-2.0
"""The ledger: an append-only file of records, each sealed to the one before by its hash.

    {"seq": 3, "time": 1.7e9, "kind": "run", "body": {...}, "previous": "ab..", "hash": "cd.."}

hash = sha256 of the record without it, in canonical JSON.  LEDGER.head beside the file says how
many records there are and the last hash, so that a dropped tail shows.  A record is on disk before
`append` returns; a crash in the middle of one leaves a torn last line, which the next append
removes.  Nothing is ever rewritten or deleted.  Standard library only.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from jaxlm.core.canonical import (
    canonical_json,
    content_id,
    plain_json,
    text_id,
    to_jsonable,
    write_json_atomic,
)
from jaxlm.core.errors import RunError, way_out

FIRST = "0" * 64  # `previous` of the first record
LAST = 1e11  # unix seconds: far beyond any clock, and still a date


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
        """Raises RunError at a line that is not as a record was written."""
        for number, line in enumerate(self.lines()[:-1], start=1):
            try:
                yield parse(line, f"{self.path}:{number}")
            except RunError as e:
                raise RunError(f"{e}; `jaxlm research verify` says more") from e

    def lines(self) -> list[bytes]:
        """Whole ones, then what a crash left of another; nothing where there is no file."""
        try:
            return self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [b""]
        except OSError as e:
            raise _unusable("read", self.path, e) from e

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Bodies of all records of a kind."""
        return [record.body for record in self if record.kind == kind]

    def append(
        self, kind: str, body: Any, guard: Callable[[list[Record]], object] | None = None
    ) -> Record:
        """Writes a record for good; one process at a time.  Raises RunError for a full disk, and as `check`.

        guard: is given all records, while nobody else can write; what it raises keeps this one out
        """
        if not self.path.exists():
            self.check()
        with self._locked("a+b") as file:
            _drop_torn_tail(file)
            records = list(self)
            self._refuse_others(records)
            if guard is not None:
                guard(records)
            last = records[-1] if records else None
            if last is not None and self._head() != (len(records), last.hash):
                self._write_head(last)  # a crash left it one behind; two would look like a forgery
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
            self._write_head(record)
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

    def check(self) -> None:
        """Raises RunError where the head tells of other records than there are."""
        is_begun = self.head_path.exists()  # first: another process may begin one now
        if self.path.exists():
            with self._locked("rb"):
                self._refuse_others(list(self))
        elif is_begun:
            self._refuse_others([])

    def head_problem(self, records: Sequence[Record]) -> str | None:
        """The head is written after its record: a crash in between leaves it one behind."""
        head = self._head()
        if head is None:
            return f"{self.head_path} is missing or damaged" if len(records) > 1 else None
        count, last = head
        if count not in (len(records), len(records) - 1):
            return f"{self.head_path} tells of {count} records, the ledger has {len(records)}"
        if not count or records[count - 1].hash != last:
            return f"{self.head_path} does not match record {count - 1}"
        return None

    def _refuse_others(self, records: Sequence[Record]) -> None:
        if problem := self.head_problem(records):
            raise RunError(
                f"{problem}; nothing may follow: put back copies of {self.path.name} and "
                f"{self.head_path.name}, or begin another --project"
            )

    def _head(self) -> tuple[int, str] | None:
        """How many records there are, and the last one's hash; None where it does not say."""
        try:
            head = json.loads(self.head_path.read_text(encoding="utf-8"))
            return int(head["records"]), str(head["hash"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def _write_head(self, last: Record) -> None:
        write_json_atomic(self.head_path, {"records": last.seq + 1, "hash": last.hash})

    @contextlib.contextmanager
    def _locked(self, mode: str) -> Iterator[IO[bytes]]:
        """The file, while nobody else writes."""
        is_read = mode == "rb"
        try:
            if not is_read:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, mode) as file:
                fcntl.flock(file, fcntl.LOCK_SH if is_read else fcntl.LOCK_EX)
                yield file
        except OSError as e:
            raise _unusable("read" if is_read else "write", self.path, e) from e

    @property
    def head_path(self) -> Path:
        return self.path.with_suffix(".head")


def seal(seq: int, when: float, kind: str, body: dict[str, Any], previous: str) -> Record:
    """A record with its hash."""
    record = Record(seq, when, kind, body, previous, hash="")
    return dataclasses.replace(record, hash=content_id(_unsealed(record)))


def _unsealed(record: Record) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name != "hash"}


def parse(line: bytes, where: str) -> Record:
    """Raises RunError for what is no record, or not as it was sealed."""
    try:
        plain = json.loads(line)
        record = Record(**plain)
        types = [type(value) for value in (record.seq, record.kind, record.body)]
        if types != [int, str, dict] or not 0 <= record.time < LAST:
            raise TypeError("a field is of another type")
        is_canonical = plain_json(plain).encode() == line
        is_whole = is_canonical and text_id(plain_json(_unsealed(record))) == record.hash
    except (ValueError, TypeError, RecursionError) as e:
        raise RunError(f"{where} is no record of a ledger ({str(e)[:60]})") from e
    if not is_whole:
        raise RunError(f"{where}: its content does not match its hash: it was edited")
    return record


def _unusable(verb: str, path: Path, error: OSError) -> RunError:
    return RunError(f"cannot {verb} {path}: {error.strerror}; {way_out(error)}, then again")


def _drop_torn_tail(file: Any) -> None:
    file.seek(0)
    data = file.read()
    if data and not data.endswith(b"\n"):
        file.truncate(data.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
