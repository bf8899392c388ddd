# SPDX-License-Identifier: Apache-2.0
"""What departed from a protocol, or was seen before it was fixed: each makes its review exploratory."""

from collections.abc import Iterator, Sequence

from jaxlm.research.earlier import protocols_before, run_ids, runs_of
from jaxlm.research.ledger import Record
from jaxlm.research.records import Protocol, RunRecord
from jaxlm.research.stories import run_problems

FRESH = ("gate", "confirmation")  # stages whose seeds must have decided nothing
RULES = ("metric", "smallest_effect", "margin", "alpha")  # that verdicts follow from


def departures(
    protocol: Protocol, runs: Sequence[RunRecord], records: Sequence[Record]
) -> list[str]:
    """One line each; none for a protocol that was kept."""
    found = []
    if protocol.any_horizon and _horizon_problem(protocol, records):
        found.append("the pilot refused this length of training; it was overruled")
    found += run_problems(protocol, [r for r in records if r.kind == "run"])
    found += _seen_before(protocol, runs, records)
    bytes_judged = {run.evaluation.get("eval/bytes") for run in runs if run.evaluation}
    if len(bytes_judged) > 1:
        found.append("arms were judged on validation texts of different length")
    return found


def _horizon_problem(protocol: Protocol, records: Sequence[Record]) -> str | None:
    """Of the newest pilot of the same baseline."""
    pilots = {
        r.body["id"]
        for r in records
        if r.kind == "protocol"
        and r.body["stage"] == "pilot"
        and r.body["arms"][0]["config_id"] == protocol.arms[0].config_id
    }
    findings = [r.body for r in records if r.kind == "finding" and r.body["protocol"] in pilots]
    return findings[-1]["problem"] if findings else None


def _seen_before(
    protocol: Protocol, runs: Sequence[RunRecord], records: Sequence[Record]
) -> Iterator[str]:
    """What was fixed when some of its runs had a verdict already: it may be what looks best.

    A sequential protocol may add seeds: its intervals hold at every look.
    """
    reviewed = {r.body["protocol"] for r in records if r.kind == "review"}
    mine = run_ids(runs)
    for earlier in protocols_before(protocol, records):
        if earlier.id not in reviewed or earlier.search:
            continue
        theirs = run_ids(runs_of(earlier, records))
        seen = {run_id for ids in theirs.values() for run_id in ids.values()}
        again = [arm for arm, ids in mine.items() if not seen.isdisjoint(ids.values())]
        if not again:
            continue
        what = f"the verdict of {earlier.id[:12]} on the same runs"
        if protocol.stage in FRESH:
            yield f"{', '.join(again)}: not on fresh seeds, but after {what}"
        names = [n for n in RULES if getattr(protocol, n) != getattr(earlier, n)]
        if protocol.predicted and protocol.predicted != earlier.predicted:
            names.append("predicted")
        if names:
            yield f"{', '.join(again)}: {', '.join(names)} fixed after {what}"
        added = [arm for arm in again if not seen.issuperset(mine[arm].values())]
        if added and not protocol.is_sequential:
            yield f"{', '.join(added)}: seeds were added after {what}"
