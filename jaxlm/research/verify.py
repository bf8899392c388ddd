# SPDX-License-Identifier: Apache-2.0
"""Whether a ledger is what was written, and its runs what it says.  Changes nothing.

Four circles: every line's hash, number and predecessor, and the head; every record against those
before it (stories.py); every review against the runs, from which it is drawn anew; every run directory
against its record (config, data and code hash to the run's id, the checkpoint is the one that was
judged, and each of its files is as its manifest says).
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.core.canonical import canonical_json, content_id, file_sha256, to_jsonable
from jaxlm.core.errors import RunError, UserError
from jaxlm.research import fingerprint
from jaxlm.research.desk import gates
from jaxlm.research.desk.signing import read_key
from jaxlm.research.ledger import FIRST, Ledger, Record, parse
from jaxlm.research.records import PATCH, protocol_from
from jaxlm.research.stories import story_problems
from jaxlm.telemetry.writer import latest_rows
from jaxlm.train import sealing
from jaxlm.train.run_dir import CHECKPOINTS, load_config, read_json

FOREIGN = (
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)  # what fields of no record of ours raise


def verify(ledger: Ledger, project: Path) -> list[str]:
    """One line for every problem; none for a ledger that holds."""
    return list(_problems(ledger, project))


def _problems(ledger: Ledger, project: Path) -> Iterator[str]:
    *lines, rest = ledger.lines()
    if rest:
        yield f"{ledger.path}: the last line is torn; the next append removes it"
    records: list[Record] = []
    broken = list(_broken(lines, ledger.path, records))
    yield from broken
    if broken:
        return  # what rests on other records than were written says nothing
    if problem := ledger.head_problem(records):
        yield problem
    problems = list(story_problems(records))
    yield from problems or _outcomes(records)
    if not problems:
        from jaxlm.research.trial import problems as trial_problems

        yield from trial_problems(records, project, fingerprint.rules())
    key = read_key()
    if key is not None:  # elsewhere nobody can tell a signature from another
        yield from gates.fold(records, key)[1]
    yield from _directories(records, project)


def _broken(lines: list[bytes], path: Path, records: list[Record]) -> Iterator[str]:
    """What is no record, or stands elsewhere than it was written; `records` takes the others."""
    previous: str | None = FIRST
    for number, line in enumerate(lines):
        try:
            record = parse(line, f"{path}:{number + 1}")
        except RunError as e:
            yield str(e)
            previous = None  # nobody knows what the next one followed
            continue
        if record.seq != number:
            yield f"record {number}: is numbered {record.seq}: records were dropped, added or re-ordered"
        if previous not in (None, record.previous):
            yield f"record {number}: does not follow the record before it"
        previous = record.hash
        records.append(record)


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
        except (RunError, *FOREIGN) as e:
            yield f"record {record.seq}: its verdicts cannot be drawn anew: {e}"
            continue
        if canonical_json(found) != canonical_json(record.body):
            yield f"record {record.seq}: its verdicts do not follow from the runs"


def _directories(records: list[Record], project: Path) -> Iterator[str]:
    protocols = {str(r.body.get("id")): r.body for r in records if r.kind == "protocol"}
    whole = functools.cache(sealing.verify)  # a run that is reused is recorded again
    for record in records:
        body, where = record.body, f"record {record.seq}"
        if record.kind != "run" or body.get("status") not in ("completed", "stopped"):
            continue
        try:
            protocol = protocols[str(body["protocol"])]
            changes = {str(arm["name"]): arm["changes"] for arm in protocol["arms"]}
            patch = changes.get(str(body["arm"]), {}).get(PATCH)
            for problem in _directory(body, project, protocol["code"], patch, whole):
                yield f"{where}: {problem}"
        except (OSError, UserError) as e:
            yield f"{where}: {e}"
        except FOREIGN as e:
            yield f"{where}: run lacks a field or holds another type: {e}"


def _directory(
    body: dict[str, Any], project: Path, code: str, patch: str | None, whole: Callable[[Path], Any]
) -> Iterator[str]:
    path, found = project / str(body["directory"]), body["evaluation"]
    if not path.exists():
        yield f"{path} is gone"
        return
    env, config = read_json(path / "env.json") or {}, load_config(path)
    expected = fingerprint.run_id_of(config, code, env.get("data_id"), patch)
    if expected != body["run_id"]:
        yield f"config, code and data of {path} are not those of run {body['run_id'][:12]}"
    if found is None:  # stopped on its way
        yield from _reading(body, path, config.train.num_steps)
    else:
        checkpoint = path / CHECKPOINTS / f"{found['step']:08d}"
        manifest, params = checkpoint / sealing.MANIFEST, checkpoint / "params.npy"
        if not manifest.exists() or file_sha256(manifest) != found["checkpoint_sha256"]:
            yield f"the checkpoint in {path} is not the one that was judged"
        elif patch and (not params.exists() or file_sha256(params) != found["params_sha256"]):
            yield f"the parameters in {path} are not those that were judged"
    if patch is None:  # else they have another form, and no other file
        for sealed in sorted((path / CHECKPOINTS).glob(f"*/{sealing.MANIFEST}")):
            whole(sealed.parent)


def _reading(body: dict[str, Any], path: Path, num_steps: int) -> Iterator[str]:
    from jaxlm.research.search import read_at, step_of

    step = step_of(body["fraction"], num_steps)
    rows = {row["step"]: row for row in latest_rows(path, "eval")}
    values = [v for name, v in rows.get(step, {}).items() if name.startswith("eval/")]
    told = values or [read_at(path, "eval/bpb", step)]
    if body["reading"] not in told:
        yield f"{path} does not say {body['reading']} at update {step}"


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
