# SPDX-License-Identifier: Apache-2.0
"""Nobody's seat: the rules that sit there when no model does, and that a model must beat.

    look at the newest run -> findings -> the ideas most worth their compute -> one draft

Deterministic, without a key, through the same verbs as everybody.
"""

from pathlib import Path

from jaxlm.core.canonical import to_jsonable
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.views import DraftView, FindingView, ProposalView

SEAT = "rules"


def look(desk: Desk, run: str) -> list[FindingView]:
    """Diagnoses a run and records what was found, so that proposals answer it."""
    findings = desk.diagnose(run)
    told = [to_jsonable(finding) for finding in findings]
    desk.ledger.append("diagnosis", {"run": Path(run).name, "findings": told, "by": desk.seat})
    return findings


def propose(desk: Desk, count: int) -> list[ProposalView]:
    """The most promising ideas that nobody has tried, at most `count`."""
    found: list[ProposalView] = []
    for idea in desk.ideas():
        if idea.tried_as is None and len(found) < count:
            why = f"expected gain per FLOP: {idea.score:.3g} per 1e15"
            proposal = desk.propose(idea.title, idea.changes, why, idea.effect, idea.low, idea.high)
            if proposal.repeats is None:
                found.append(proposal)
    return found


def draft(desk: Desk, proposals: list[ProposalView], seeds: int) -> DraftView:
    """All proposals against the baseline in one question."""
    titles = ", ".join(p.title for p in proposals)
    return desk.draft([p.id for p in proposals], f"one of these lowers the loss: {titles}", seeds)
