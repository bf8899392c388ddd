# SPDX-License-Identifier: Apache-2.0
"""Whether a ledger is what was written, and its runs what it says.  Changes nothing.

Three circles: every line's hash, number and predecessor, and the head; every record against those
before it (a run of a protocol's arm and seed, by its evaluator, a metric only with a completed
run); every run directory against its record (config, data and code hash to the run's id, the
checkpoint is the one that was judged).  Standard library only.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.config import identity
from jaxlm.core.canonical import canonical_json, content_id, file_sha256
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research.ledger import FIRST, Ledger, Record, parse, seal
from jaxlm.research.records import protocol_from
from jaxlm.train.run_dir import load_config, read_json

KINDS = ("protocol", "approval", "run", "review")


def verify(ledger: Ledger, project: Path) -> list[str]:
    """One line for every problem; none for a ledger that holds."""
    return list(_problems(ledger, project))


def _problems(ledger: Ledger, project: Path) -> Iterator[str]:
    records: list[Record] = []
    previous = FIRST
    lines = ledger.path.read_bytes().split(b"\n")
    if lines.pop():
        yield f"{ledger.path}: the last line is torn; the next append removes it"
    for number, line in enumerate(lines):
        try:
            record = parse(line, f"{ledger.path}:{number + 1}")
        except RunError as e:
            yield str(e).partition(";")[0]
            continue
        yield from _link(record, number, previous, line)
        previous = record.hash
        records.append(record)
    yield from _head(ledger, records)
    yield from _stories(records)
    codes = {r.body.get("id"): r.body.get("code") for r in records if r.kind == "protocol"}
    for record in records:
        if record.kind == "run" and record.body.get("status") == "completed":
            yield from _directory(record, project, str(codes.get(record.body.get("protocol"))))


def _link(record: Record, number: int, previous: str, line: bytes) -> Iterator[str]:
    where = f"record {number}"
    sealed = seal(record.seq, record.time, record.kind, record.body, record.previous)
    if sealed.hash != record.hash or canonical_json(record).encode() != line:
        yield f"{where}: its content does not match its hash: it was edited"
    if record.seq != number:
        yield f"{where}: is numbered {record.seq}: records were dropped, added or re-ordered"
    if record.previous != previous:
        yield f"{where}: does not follow the record before it"


def _head(ledger: Ledger, records: list[Record]) -> Iterator[str]:
    """The head is written after its record: a crash in between leaves it one behind."""
    try:
        head = json.loads(ledger.head_path.read_text(encoding="utf-8"))
        count, last = int(head["records"]), str(head["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        if len(records) > 1:
            yield f"{ledger.head_path} is missing or damaged"
        return
    if count not in (len(records), len(records) - 1):
        yield f"{ledger.head_path} tells of {count} records, the ledger has {len(records)}"
    elif not count or records[count - 1].hash != last:
        yield f"{ledger.head_path} does not match record {count - 1}"


def _stories(records: list[Record]) -> Iterator[str]:
    protocols: dict[str, dict[str, Any]] = {}
    approved: set[str] = set()
    seen: set[tuple[str, str, int]] = set()
    for record in records:
        body, where = record.body, f"record {record.seq}"
        try:
            if record.kind == "protocol":
                if protocol_from(body).id != body["id"]:
                    yield f"{where}: the protocol was edited: its id is of another text"
                protocols[body["id"]] = body
            elif record.kind not in KINDS:
                yield f"{where}: unknown kind {record.kind!r}"
            elif body["protocol"] not in protocols:
                yield f"{where}: {record.kind} of a protocol that was not fixed before it"
            elif record.kind == "approval":
                approved.add(body["protocol"])
            elif record.kind == "run":
                if body["protocol"] not in approved:
                    yield f"{where}: run of a protocol that nobody approved"
                yield from (f"{where}: {p}" for p in _run(body, protocols[body["protocol"]], seen))
            elif record.kind == "review":
                protocol = protocol_from(protocols[body["protocol"]])
                if {(protocol.id, *run) for run in protocol.runs} - seen:
                    yield f"{where}: review before all runs of its protocol"
        except (KeyError, TypeError, ValueError) as e:
            yield f"{where}: {record.kind} lacks a field or holds another type: {e}"


def _run(
    body: dict[str, Any], protocol: dict[str, Any], seen: set[tuple[str, str, int]]
) -> Iterator[str]:
    if (body["arm"], body["seed"]) not in protocol_from(protocol).runs:
        yield f"arm {body['arm']!r} with seed {body['seed']} is not in the protocol"
    key = (body["protocol"], body["arm"], body["seed"])
    if key in seen:
        yield f"arm {body['arm']!r} with seed {body['seed']} was recorded before"
    seen.add(key)
    found = body["evaluation"]
    is_completed = body["status"] == "completed"
    if (found is not None) != is_completed or (body["metric"] is not None) != is_completed:
        yield f"status {body['status']!r} with metric {body['metric']}"
    elif found is not None:
        if found[protocol["metric"]] != body["metric"]:
            yield f"metric {body['metric']} is not its evaluation's {found[protocol['metric']]}"
        if found["run_id"] != body["run_id"]:
            yield "the evaluation is of another run"
        if found["evaluator"] != protocol["evaluator"]:
            yield "judged by another evaluator than the protocol's"


def _directory(record: Record, project: Path, code: str) -> Iterator[str]:
    body, where = record.body, f"record {record.seq}"
    path, found = project / str(body["directory"]), body["evaluation"]
    if not path.exists():
        yield f"{where}: {path} is gone"
        return
    try:
        env = read_json(path / "env.json") or {}
        config = load_config(path)
    except (RunError, ConfigError) as e:
        yield f"{where}: {e}"
        return
    parts = {"config": identity(config), "code": code, "data": env.get("data_id")}
    if content_id(parts) != body["run_id"]:
        yield f"{where}: config, code and data of {path} are not those of run {body['run_id'][:12]}"
    manifest = path / "checkpoints" / f"{found['step']:08d}" / "manifest.json"
    if not manifest.exists() or file_sha256(manifest) != found["checkpoint_sha256"]:
        yield f"{where}: the checkpoint in {path} is not the one that was judged"


def content(ledger: Ledger) -> str:
    """sha256 of all bodies in order: equal for two ledgers that tell the same, whenever written.

    Left out is the hash of a checkpoint's files, which hold times; that of its numbers stays.
    """
    told = []
    for record in ledger:
        evaluation = dict(record.body.get("evaluation") or {})
        evaluation.pop("checkpoint_sha256", None)
        told.append([record.kind, record.body | {"evaluation": evaluation}])
    return content_id(told)
