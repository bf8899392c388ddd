# SPDX-License-Identifier: Apache-2.0
"""Every record against those before it: a run of a protocol's arm and seed, judged by its evaluator,
a metric only with a completed run, a review after its runs.  Standard library only.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxlm.research.desk import gates
from jaxlm.research.ledger import Record
from jaxlm.research.records import (
    Finding,
    Forecast,
    Protocol,
    Review,
    RunRecord,
    Score,
    protocol_from,
)

KINDS = ("protocol", "approval", "run", "finding", "review", "forecast", "score")
SHAPES: dict[str, Callable[..., Any]] = {
    "run": RunRecord, "finding": Finding, "review": Review, "forecast": Forecast, "score": Score,
}  # fmt: skip
Key = tuple[str, str, int, int, float]  # protocol, arm, seed, scale, fraction


def story_problems(records: Sequence[Record]) -> Iterator[str]:
    """One line for every record that does not follow from those before it."""
    protocols: dict[str, Protocol] = {}
    approved: set[str] = set()
    seen: set[Key] = set()
    judged: dict[str, Any] = {}
    forecast: set[str] = set()
    for record in records:
        body, where = record.body, f"record {record.seq}"
        try:
            if record.kind in SHAPES:
                SHAPES[record.kind](**body)  # all fields, and no others
            if record.kind == "protocol":
                protocol = protocol_from(body)
                if protocol.id != body["id"]:
                    yield f"{where}: the protocol was edited: its id is of another text"
                if protocol.follows is not None and protocol.follows not in protocols:
                    yield f"{where}: follows a protocol that was not fixed before it"
                protocols[body["id"]] = protocol
            elif record.kind in gates.KINDS:
                continue  # of the desk, whose own fold judges them
            elif record.kind not in KINDS:
                yield f"{where}: unknown kind {record.kind!r}"
            elif body["protocol"] not in protocols:
                yield f"{where}: {record.kind} of a protocol that was not fixed before it"
            elif record.kind == "approval":
                approved.add(body["protocol"])
            elif record.kind == "run":
                if body["protocol"] not in approved:
                    yield f"{where}: run of a protocol that nobody approved"
                yield from _run(record, protocols[body["protocol"]], seen, judged)
            elif record.kind == "forecast":
                if any(owner == body["protocol"] for owner, *_ in seen):
                    yield f"{where}: forecast of runs that were there before it"
                forecast.add(body["protocol"])
            elif record.kind == "score" and body["protocol"] not in forecast:
                yield f"{where}: score of a trial that nobody forecast"
            elif record.kind == "finding":
                continue
            elif _misses_runs(protocols[body["protocol"]], seen):
                yield f"{where}: {record.kind} before all runs of its protocol"
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            yield f"{where}: {record.kind} lacks a field or holds another type: {e}"


def run_problems(protocol: Protocol, records: Sequence[Record]) -> list[str]:
    """Of the runs of one protocol among records of runs."""
    seen: set[Key] = set()
    judged: dict[str, Any] = {}
    mine = (record for record in records if record.body.get("protocol") == protocol.id)
    return [line for record in mine for line in _run(record, protocol, seen, judged)]


def _misses_runs(protocol: Protocol, seen: set[Key]) -> bool:
    """Whether a planned run is missing; one look after another, or a policy, may need fewer."""
    there = {(arm, seed) for owner, arm, seed, _, _ in seen if owner == protocol.id}
    least = protocol.runs
    if protocol.first_look is not None:
        later = set(protocol.seeds[protocol.first_look :])
        least = [run for run in least if run[1] not in later]
    return not there.issuperset(least)


def _run(
    record: Record, protocol: Protocol, seen: set[Key], judged: dict[str, Any]
) -> Iterator[str]:
    body, where = record.body, f"record {record.seq}: "
    name = f"arm {body['arm']!r} with seed {body['seed']}"
    if protocol.search is None and (body["arm"], body["seed"]) not in protocol.runs:
        yield f"{where}{name} is not in the protocol"
    key = (protocol.id, body["arm"], body["seed"], body["scale"], body["fraction"])
    if key in seen:
        yield f"{where}{name} was recorded before"
    seen.add(key)
    found, metric = body["evaluation"], body["metric"]
    is_completed = body["status"] == "completed"
    if (found is not None) != is_completed or (metric is not None) != is_completed:
        yield f"{where}status {body['status']!r} with metric {metric}"
        return
    if found is None:
        return
    if found[protocol.metric] != metric:
        yield f"{where}metric {metric} is not its evaluation's {found[protocol.metric]}"
    if found["run_id"] != body["run_id"]:
        yield f"{where}the evaluation is of another run"
    if found["evaluator"] != protocol.evaluator:
        yield f"{where}judged by another evaluator than the protocol's"
    if judged.setdefault(body["run_id"], found) != found:
        yield f"{where}run {body['run_id'][:12]} was judged otherwise before"
