# SPDX-License-Identifier: Apache-2.0
"""The desk's records as lines for people.  Standard library only."""

from collections.abc import Callable
from typing import Any

from jaxlm.telemetry.readable import number

Body = dict[str, Any]


def _project(b: Body) -> str:
    limits = f"{number(b['max_flops'])}FLOPs, {b['max_usd']:g} USD, {b['max_hours']:g} h"
    return f"{' '.join(b['config'])}; at most {limits}"


def _diagnosis(b: Body) -> str:
    return f"{b['run']}: {', '.join(f['cause'] for f in b['findings']) or 'nothing wrong'}"


def _proposal(b: Body) -> str:
    effect, low, high = b["predicted"]
    return f"{b['id'][:12]}  {b['title']}: {effect:+.4f} ({low:+.4f} to {high:+.4f}), by {b['by']}"


def _draft(b: Body) -> str:
    arms = ", ".join(arm["name"] for arm in b["arms"])
    return f"{b['id'][:12]}  {arms}; {b['seeds']} seeds, {number(b['flops'])}FLOPs, by {b['by']}"


def _check(b: Body) -> str:
    return f"{b['draft'][:12]}  {'; '.join(b['problems']) or 'nothing wrong'}"


def _by(b: Body) -> str:
    why = f": {b['why']}" if b.get("why") else ""
    return f"{b.get('draft', '')[:12]}  by {b['by']}{_at(b)}{why}".strip()


def _at(b: Body) -> str:
    return f", at the {b['at']}" if b.get("at") else ""


def _outcome(b: Body) -> str:
    how = "confirmed on fresh seeds" if b["is_confirmed"] else "not confirmed"
    return f"{b['draft'][:12]}  kept: {', '.join(b['kept']) or 'nothing'}; {how}"


def _adoption(b: Body) -> str:
    return f"{b['draft'][:12]}  {b['arm']}, by {b['by']}{_at(b)}"


def _envelope(b: Body) -> str:
    return f"{b['id'][:12]}  {', '.join(b['fields'])}; {number(b['flops'])}FLOPs, by {b['by']}"


def _call(b: Body) -> str:
    how = b["error"] or b["stop_reason"] or "at most"
    return f"{b['call']}  {b['model']} {b['status']}, {b['usd']:.4f} USD: {how}"


def _patch(b: Body) -> str:
    return f"{b['id'][:12]}  {', '.join(b['files'])}; by {b['by']}"


LINES: dict[str, Callable[[Body], str]] = {
    "project": _project, "diagnosis": _diagnosis, "proposal": _proposal, "draft": _draft,
    "check": _check, "consent": _by, "refusal": _by, "start": _by, "outcome": _outcome,
    "adoption": _adoption, "envelope": _envelope, "halt": _by, "resume": _by, "call": _call,
    "patch": _patch, "trial": _by, "tested": _check,
}  # fmt: skip
