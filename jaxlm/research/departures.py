# SPDX-License-Identifier: Apache-2.0
"""What departed from a protocol after it was fixed: each makes its review exploratory.

Standard library only.
"""

from collections.abc import Iterator, Sequence

from jaxlm.research.ledger import Record
from jaxlm.research.records import BASELINE, Protocol, RunRecord, protocol_from
from jaxlm.research.stories import run_problems


def departures(
    protocol: Protocol, runs: Sequence[RunRecord], records: Sequence[Record]
) -> list[str]:
    """One line each; none for a protocol that was kept."""
    found = []
    if protocol.any_horizon and _horizon_problem(protocol, records):
        found.append("the pilot refused this length of training; it was overruled")
    found += run_problems(protocol, [r for r in records if r.kind == "run"])
    found += _added_seeds(protocol, records)
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


def _added_seeds(protocol: Protocol, records: Sequence[Record]) -> Iterator[str]:
    """More seeds of arms that already had a verdict: one may stop where it looks best.

    A sequential protocol may: its intervals hold at every look.
    """
    if protocol.is_sequential or protocol.stage not in ("screen", "gate"):
        return
    reviewed = {r.body["protocol"] for r in records if r.kind == "review"} - {protocol.id}
    mine = {arm.config_id: arm.name for arm in protocol.arms}
    base = mine.pop(next(arm.config_id for arm in protocol.arms if arm.name == BASELINE))
    for record in records:
        if record.kind != "protocol" or record.body["id"] == protocol.id:
            continue
        earlier = protocol_from(record.body)
        configs = {arm.config_id for arm in earlier.arms}
        if earlier.id not in reviewed or protocol.arms[0].config_id not in configs:
            continue
        seen = set(earlier.seeds) & set(protocol.seeds)
        again = [mine[c] for c in mine if c in configs]
        if again and seen and set(protocol.seeds) - seen and earlier.metric == protocol.metric:
            yield (
                f"{', '.join(again)}: seeds were added after the verdict of {earlier.id[:12]} on "
                f"{len(seen)} of them, against the same {base}"
            )
