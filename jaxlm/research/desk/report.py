# SPDX-License-Identifier: Apache-2.0
"""`jaxlm research report`: what a project asked, what came out, what it cost, what to do next.

One Markdown text and one self-contained page from the same lines.  Every line with a number ends with
the records behind it, and the text is refused when one of its numbers is in none of them (lint.py).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.core.errors import RunError
from jaxlm.research.ablation_page import curves, effects
from jaxlm.research.campaign import Stage
from jaxlm.research.desk import drafting, gates, lint, reviews, trial_report
from jaxlm.research.desk.quoting import plain
from jaxlm.research.ledger import Record
from jaxlm.research.records import Protocol
from jaxlm.telemetry.page import page, write_page
from jaxlm.telemetry.readable import markup

if TYPE_CHECKING:
    from jaxlm.research.desk.desk import Desk

MOST_NEXT = 3


@dataclasses.dataclass(frozen=True)
class Line:
    """Words, and the records that they rest on."""

    words: str
    seqs: tuple[int, ...] = ()

    def markdown(self) -> str:
        cited = f" [{', '.join(map(str, self.seqs))}]" if self.seqs else ""
        return f"{self.words}{cited}"


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    lines: tuple[Line, ...]
    stages: tuple[Stage, ...] = ()  # drawn: effects with intervals, and curves
    figures: tuple[str, ...] = ()  # HTML


def write_report(desk: "Desk", folder: Path) -> list[Path]:
    """Writes report.md and report.html.

    Raises ValueError for a number that no record holds: a fault of this program, or a ledger that
    `jaxlm research verify` would not pass.
    """
    told = sections(desk)
    markdown = as_markdown(told)
    problems = lint.unbacked(markdown, {r.seq: r.body for r in desk.records()})
    if problems:
        raise ValueError(f"the report holds numbers without a record: {'; '.join(problems[:3])}")
    text, html = folder / "report.md", folder / "report.html"
    text.write_text(markdown, encoding="utf-8")
    write_page(html, as_page(told, desk.project))
    return [text, html]


def as_markdown(told: Sequence[Section]) -> str:
    parts = []
    for section in told:
        parts += [
            f"## {section.title}",
            "",
            *(f"- {line.markdown()}" for line in section.lines),
            "",
        ]
    return "# Research report\n\n" + "\n".join(parts)


def as_page(told: Sequence[Section], project: Path) -> str:
    parts = ["<h1>Research report</h1>"]
    for section in told:
        items = "".join(f"<li>{_html(line)}</li>" for line in section.lines)
        title = markup(section.title.replace("`", ""))
        parts += [f"<h2>{title}</h2>", f'<div class="box"><ul>{items}</ul></div>']
        for stage in section.stages:
            parts += _drawn(stage, project)
        if section.figures:
            boxes = "".join(f'<div class="box">{figure}</div>' for figure in section.figures)
            parts.append(f'<div class="grid">{boxes}</div>')
    return page("Research report · jaxlm", "\n".join(parts))


def _drawn(stage: Stage, project: Path) -> Iterator[str]:
    """Effects, and the curves behind them; those of a ladder and a trial are drawn with the trial."""
    yield f"<h3>{markup(stage.protocol.stage.capitalize())}</h3>"
    yield f'<div class="box">{effects(stage.review, stage.protocol)}</div>'
    if stage.protocol.stage not in ("ladder", "trial"):
        try:
            yield f'<div class="grid">{curves(stage.protocol, stage.runs, project)}</div>'
        except RunError:  # telemetry that is damaged: the numbers stand
            yield f"<p>the runs of this {stage.protocol.stage} cannot be drawn</p>"


def sections(desk: "Desk") -> list[Section]:
    """Question, each draft, forecasts against outcomes, cost, next steps."""
    records = desk.records()
    standing = desk.standing()
    drafts = [_draft(r, records, standing) for r in records if r.kind == "draft"]
    return [
        Section("The project", tuple(_project(records))),
        *drafts,
        *_trial(records, desk.project),
        Section("Forecasts and outcomes", tuple(_forecasts(records)) or (Line("none yet"),)),
        Section("Cost", tuple(_cost(records)) or (Line("nothing was started"),)),
        Section("Next", tuple(_next(desk, standing))),
    ]


def _html(line: Line) -> str:
    cited = f' <span class="mute">[{", ".join(map(str, line.seqs))}]</span>' if line.seqs else ""
    return markup(line.words.replace("`", "")) + cited


def _project(records: Sequence[Record]) -> Iterator[Line]:
    begun = [r for r in records if r.kind == "project"][-1]
    body = begun.body
    yield Line(f"config `{' '.join([*body['config'], *body['overrides']])}`")
    yield Line(
        f"at most {body['max_flops']:.3g} FLOPs, {body['max_usd']:g} USD, {body['max_hours']:g} hours",
        (begun.seq,),
    )
    for record in records:
        if record.kind == "adoption":
            yield Line(
                f"adopted: {plain(record.body['arm'])}, by `{record.body['by']}`", (record.seq,)
            )


def _draft(record: Record, records: Sequence[Record], standing: gates.Standing) -> Section:
    body = record.body
    lines = [
        Line(f"state: {standing.states.get(body['id'], 'void')}; drafted by `{body['by']}`"),
        Line(f"expected: {plain(body['hypothesis'], 300)}", (record.seq,)),
        Line(
            f"{len(body['arms'])} arms, {body['seeds']} seeds, {body['confirm']} fresh",
            (record.seq,),
        ),
    ]
    outcome = next(
        (r for r in records if r.kind == "outcome" and r.body["draft"] == body["id"]), None
    )
    stages = reviews.stages_of(body["id"], records)
    for seq, stage in stages:
        lines += [_verdict(v, stage.protocol, seq) for v in stage.review.verdicts]
    if outcome is not None:
        if outcome.body.get("unanswered"):
            lines.append(
                Line(f"no answer: {plain(outcome.body['unanswered'], 300)}", (outcome.seq,))
            )
        kept = ", ".join(map(plain, outcome.body["kept"])) or "nothing"
        lines.append(Line(f"kept in the end: {kept}", (outcome.seq,)))
    title = f"Draft `{body['id'][:12]}`"
    return Section(title, tuple(lines), tuple(stage for _, stage in stages))


def _trial(records: Sequence[Record], project: Path) -> Iterator[Section]:
    told = [Line(words, seqs) for words, seqs in trial_report.lines(records)]
    if told:
        yield Section(
            "The trial", tuple(told), figures=tuple(trial_report.figures(records, project))
        )


def _verdict(verdict: dict[str, Any], protocol: Protocol, seq: int) -> Line:
    said = f"{protocol.stage}: {plain(verdict['arm'])}: {verdict['decision']}"
    if verdict["effect"] is not None:
        said += f", {verdict['effect']:+.4f} {protocol.metric}"
    if verdict["low"] is not None and verdict["high"] is not None:
        said += f" ({verdict['low']:+.4f} to {verdict['high']:+.4f})"
    return Line(said, (seq,))


def _forecasts(records: Sequence[Record]) -> Iterator[Line]:
    """Each proposal's interval beside the effect that its arm had on the most seeds of a screen."""
    proposals = {r.body["id"]: r for r in records if r.kind == "proposal"}
    for draft in (r for r in records if r.kind == "draft"):
        titles = {
            proposals[p].body["title"]: proposals[p]
            for p in draft.body["proposals"]
            if p in proposals
        }
        screens = {
            p.id for p in reviews.protocols_of(draft.body["id"], records) if p.stage == "screen"
        }
        for review in records:
            if review.kind == "review" and review.body["protocol"] in screens:
                for verdict in review.body["verdicts"]:
                    proposal = titles.get(verdict["arm"])
                    if proposal is not None and verdict["effect"] is not None:
                        yield _forecast(proposal, verdict, review.seq)


def _forecast(proposal: Record, verdict: dict[str, Any], seq: int) -> Line:
    effect, low, high = proposal.body["predicted"]
    how = "within" if low <= verdict["effect"] <= high else "outside"
    return Line(
        f"{plain(verdict['arm'])}: expected {effect:+.4f} ({low:+.4f} to {high:+.4f}) by "
        f"`{proposal.body['by']}`, came out at {verdict['effect']:+.4f}: {how}",
        (proposal.seq, seq),
    )


def _cost(records: Sequence[Record]) -> Iterator[Line]:
    started = {r.body["draft"] for r in records if r.kind == "start"}
    drafts = [r for r in records if r.kind == "draft" and r.body["id"] in started]
    if drafts:
        total = sum(r.body["flops"] for r in drafts)
        yield Line(f"runs: at most {total:.3g} FLOPs", tuple(r.seq for r in drafts))
    calls = {r.body["call"]: r for r in records if r.kind == "call"}  # the last word on each
    if calls:
        total = sum(r.body["usd"] for r in calls.values())
        yield Line(f"calls of a model: {total:.4f} USD", tuple(r.seq for r in calls.values()))


def _next(desk: "Desk", standing: gates.Standing) -> Iterator[Line]:
    for name, state in standing.states.items():
        if state == "checked":
            yield Line(f"approve or refuse `{name[:12]}`")
        elif state in ("approved", "running"):
            yield Line(f"run `{name[:12]}`")
        elif state == "confirmed":
            yield Line(f"adopt what `{name[:12]}` kept, or leave it")
    untried = [idea.title for idea in drafting.ideas(desk) if idea.tried_as is None][:MOST_NEXT]
    if untried:
        yield Line(f"worth trying: `{'`, `'.join(untried)}`")
