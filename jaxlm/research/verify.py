# SPDX-License-Identifier: Apache-2.0
"""Whether a ledger is what was written, and its runs what it says.  Changes nothing.

Four circles: every line's hash, number and predecessor, and the head; every record against those
before it (stories.py); every review against the runs, from which it is drawn anew; every run directory
against its record (config, data and code hash to the run's id, the checkpoint is the one that was
judged).
"""

import json
from collections.abc import Iterator
from pathlib import Path

from jaxlm.core.canonical import canonical_json, content_id, file_sha256, to_jsonable
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research import fingerprint
from jaxlm.research.desk import gates
from jaxlm.research.desk.signing import read_key
from jaxlm.research.ledger import FIRST, Ledger, Record, parse, seal
from jaxlm.research.records import PATCH, protocol_from
from jaxlm.research.stories import story_problems
from jaxlm.telemetry.writer import latest_rows
from jaxlm.train.run_dir import load_config, read_json


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
    problems = list(story_problems(records))
    yield from problems or _outcomes(records)
    if not problems:
        from jaxlm.research.trial import problems as trial_problems

        yield from trial_problems(records, project, fingerprint.rules())
    key = read_key()
    if key is not None:  # elsewhere nobody can tell a signature from another
        yield from gates.fold(records, key)[1]
    protocols = {r.body.get("id"): r.body for r in records if r.kind == "protocol"}
    for record in records:
        if record.kind == "run" and record.body.get("status") in ("completed", "stopped"):
            protocol = protocols.get(record.body.get("protocol"), {})
            arms = {arm.get("name"): arm.get("changes", {}) for arm in protocol.get("arms", ())}
            patch = arms.get(record.body.get("arm"), {}).get(PATCH)
            yield from _directory(record, project, protocol.get("code"), patch)


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


def _outcomes(records: list[Record]) -> Iterator[str]:
    """Reviews drawn anew from the recorded runs, where the rules are those of today's code."""
    from jaxlm.research.earlier import runs_of
    from jaxlm.research.review import review  # statistics, which the rest does without
    from jaxlm.research.search import review_search

    protocols = {r.body["id"]: protocol_from(r.body) for r in records if r.kind == "protocol"}
    for record in records:
        if record.kind != "review":
            continue
        protocol, before = protocols[record.body["protocol"]], records[: record.seq]
        if protocol.rules != fingerprint.rules():
            continue
        judge = review if protocol.search is None else review_search
        try:
            found = to_jsonable(judge(protocol, runs_of(protocol, before), before))
        except RunError as e:
            yield f"record {record.seq}: {e}"
            continue
        if canonical_json(found) != canonical_json(record.body):
            yield f"record {record.seq}: its verdicts do not follow from the runs"


def _directory(record: Record, project: Path, code: str | None, patch: str | None) -> Iterator[str]:
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
    expected = fingerprint.run_id_of(config, str(code), env.get("data_id"), patch)
    if expected != body["run_id"]:
        yield f"{where}: config, code and data of {path} are not those of run {body['run_id'][:12]}"
    if found is None:  # stopped on its way
        yield from _reading(record, path, config.train.num_steps)
        return
    manifest = path / "checkpoints" / f"{found['step']:08d}" / "manifest.json"
    params = manifest.with_name("params.npy")  # of a patched run; else the manifest seals the files
    if not manifest.exists() or file_sha256(manifest) != found["checkpoint_sha256"]:
        yield f"{where}: the checkpoint in {path} is not the one that was judged"
    elif patch and (not params.exists() or file_sha256(params) != found["params_sha256"]):
        yield f"{where}: the parameters in {path} are not those that were judged"


def _reading(record: Record, path: Path, num_steps: int) -> Iterator[str]:
    from jaxlm.research.search import read_at, step_of

    step = step_of(record.body["fraction"], num_steps)
    rows = {row["step"]: row for row in latest_rows(path, "eval")}
    values = [v for name, v in rows.get(step, {}).items() if name.startswith("eval/")]
    told = values or [read_at(path, "eval/bpb", step)]
    if record.body["reading"] not in told:
        yield f"record {record.seq}: {path} does not say {record.body['reading']} at update {step}"


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
