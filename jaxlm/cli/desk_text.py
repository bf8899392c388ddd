# SPDX-License-Identifier: Apache-2.0
"""What the desk's verbs print: proposals, drafts, and where a project stands."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jaxlm.telemetry.readable import aligned, number

if TYPE_CHECKING:
    from jaxlm.research.desk.views import DraftView, ProposalView, StatusView


def proposals(found: "Sequence[ProposalView]") -> Iterator[str]:
    """Proposals as a table, in their order."""
    head = (
        "proposal", "title", "changes", "effect expected", "holds it 9 times in 10", "a run costs",
        "gain per 1e15 FLOPs",
    )  # fmt: skip
    rows = [
        (
            p.id[:12], p.title, ", ".join(f"{k} = {v}" for k, v in p.changes.items()),
            f"{p.effect:+.4f}", f"{p.low:+.4f} to {p.high:+.4f}", f"{number(p.flops)}FLOPs",
            number(p.score),
        )
        for p in found
    ]  # fmt: skip
    return aligned([head, *rows])


def status_lines(status: "StatusView") -> list[str]:
    lines = [
        f"config    {' '.join([*status.config, *status.overrides])}",
        f"adopted   {', '.join(status.adopted) or 'nothing yet'}",
        f"left      {number(status.flops_left)}FLOPs, {status.usd_left:.2f} USD, {status.hours_left:.1f} h",
    ]
    if status.is_halted:
        lines.append("HALTED    nothing starts; jaxlm research resume")
    for draft in status.drafts:
        lines += draft_lines(draft)
    return lines


def draft_lines(draft: "DraftView") -> list[str]:
    lines = [
        f"{draft.id[:12]}  {draft.state:9s} {', '.join(draft.arms)}; {draft.seeds} seeds, at most "
        f"{number(draft.flops)}FLOPs"
    ]
    lines += [f"              {problem}" for problem in draft.problems]
    if draft.kept:
        lines.append(f"              kept: {', '.join(draft.kept)}")
    return lines
