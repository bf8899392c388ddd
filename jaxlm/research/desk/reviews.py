# SPDX-License-Identifier: Apache-2.0
"""What came of a draft: the stages that its runs were reviewed in, from the ledger alone."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxlm.research.campaign import Stage
from jaxlm.research.desk.quoting import plain
from jaxlm.research.desk.views import StageView, VerdictView
from jaxlm.research.earlier import runs_of
from jaxlm.research.ledger import Record
from jaxlm.research.records import Protocol, Review, protocol_from


def protocols_of(draft: str, records: Sequence[Record]) -> Iterator[Protocol]:
    """Also those without a review yet."""
    mine = {
        r.body["protocol"]
        for r in records
        if r.kind == "approval" and r.body.get("by") == f"draft {draft}"
    }
    for record in records:
        if record.kind == "protocol" and record.body["id"] in mine:
            yield protocol_from(record.body)


def stages_of(draft: str, records: Sequence[Record]) -> list[tuple[int, Stage]]:
    """Each reviewed protocol with the number of its review."""
    reviews = {r.body["protocol"]: r for r in records if r.kind == "review"}
    return [
        (reviews[p.id].seq, Stage(p, _review(reviews[p.id].body), runs_of(p, records)))
        for p in protocols_of(draft, records)
        if p.id in reviews
    ]


def view(record: int, stage: Stage) -> StageView:
    """For a seat: numbers, and words of ours; names of arms are cut to a line."""
    verdicts = [
        VerdictView(
            arm=plain(v["arm"]),
            decision=v["decision"],
            effect=v["effect"],
            low=v["low"],
            high=v["high"],
            seeds=v["n"],
            compute_saved=v.get("saved_share"),
            false_discovery_rate=v.get("project_q"),
            seeds_needed=v.get("seeds_needed"),
            reason=plain(v["reason"]),
        )
        for v in stage.review.verdicts
    ]
    protocol, departures = stage.protocol, list(map(plain, stage.review.departures))
    return StageView(record, protocol.stage, protocol.metric, verdicts, departures)


def _review(body: dict[str, Any]) -> Review:
    return Review(**body | {n: tuple(body[n]) for n in ("departures", "verdicts")})
