# SPDX-License-Identifier: Apache-2.0
"""Findings for people and for programs.  Says registered names and numbers, no text of the run."""

import math
from collections.abc import Iterator
from typing import Any

from jaxlm.core.canonical import to_jsonable
from jaxlm.research.diagnose.causes import CAUSES
from jaxlm.research.diagnose.findings import Evidence, Finding
from jaxlm.research.diagnose.telemetry import Telemetry
from jaxlm.telemetry.readable import number, percent, printable
from jaxlm.telemetry.textplot import curve

WIDTH = 60  # of a small picture


def page(name: str, t: Telemetry, findings: list[Finding], problems: list[str]) -> Iterator[str]:
    """Lines for a terminal: first causes first, each with evidence, a picture and the next test."""
    yield f"{printable(name)}: {_count(t.last_step, 'update')}, {_summary(findings)}"
    for i, found in enumerate(findings, start=1):
        yield ""
        yield from _finding(i, found, t)
    count = sum(len(f.evidence) + len(f.counter_evidence) for f in findings)
    if count:
        yield ""
        yield f"citations computed again from telemetry.jsonl: {count - len(problems)} of {count} hold"
        yield from problems
    if t.config.train.probe_every is None or not t.parts("grad/norm_l2"):
        yield ""
        yield "without probes (TrainConfig.probe_every) layers, logits and data cannot be judged"


def _summary(findings: list[Finding]) -> str:
    if not findings:
        return f"healthy: none of {len(CAUSES)} causes found"
    roots = sum(f.explained_by is None for f in findings)
    rest = len(findings) - roots
    return _count(roots, "finding") + (f" and {_count(rest, 'consequence')}" if rest else "")


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _finding(index: int, found: Finding, t: Telemetry) -> Iterator[str]:
    head = f"{index}. {found.cause}: {found.meaning}"
    if found.explained_by is not None:
        yield f"{head}; follows from {found.explained_by}"
    else:
        yield f"{head} ({found.severity}, confidence {percent(found.confidence)})"
    for evidence in found.evidence:
        yield f"   for      {citation(evidence)}"
    for evidence in found.counter_evidence:
        yield f"   against  {citation(evidence)}"
    if found.explained_by is None:
        changes = " ".join(f"--set {k}={v}" for k, v in found.next_test.changes.items())
        yield f"   next     {found.next_test.sentence}{f'  {changes}' if changes else ''}"
        yield from _picture(found.evidence[0], t)


def citation(e: Evidence) -> str:
    """One piece of evidence in one line."""
    side = ">" if e.direction == "above" else "<"
    rows = f"update {e.first_step}" if e.first_step == e.last_step else (
        f"updates {e.first_step}..{e.last_step}"
    )  # fmt: skip
    return f"{e.statistic} of {e.metric} = {number(e.value)} {side} {number(e.threshold)}, {rows}"


def _picture(e: Evidence, t: Telemetry) -> Iterator[str]:
    drawn = curve([float(v) for v in t.get(e.metric).values], WIDTH, 2)
    if drawn:
        yield f"            {e.metric}"
        yield from (f"            {line}" for line in drawn.splitlines())


def as_json(findings: list[Finding], problems: list[str]) -> dict[str, Any]:
    """Plain values; what is not finite becomes null, since JSON has no word for it."""
    return {"findings": _plain(to_jsonable(findings)), "citations_that_do_not_hold": problems}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
