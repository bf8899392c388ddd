# SPDX-License-Identifier: Apache-2.0
"""The gates: what state each draft is in, and which steps nobody was allowed to take.

    drafted -> checked -> approved -> running -> reviewed -> confirmed -> adopted
                   \\-> refused

A draft with code from a model stays "checked" until a person let it be tried behind walls (trial) and
it passed (tested); only then may a person approve it.

All of it follows from the ledger's records by one fold, so the rule that lets a step through and
the rule that finds one that should not have happened are the same.  Standard library only.
"""

import dataclasses
import time
from collections.abc import Iterable
from typing import Any, Literal

from jaxlm.core.canonical import content_id, to_jsonable
from jaxlm.core.errors import RunError
from jaxlm.research.desk.signing import is_signed
from jaxlm.research.ledger import Ledger, Record
from jaxlm.research.records import PATCH

State = Literal[
    "drafted", "checked", "approved", "refused", "running", "reviewed", "confirmed", "adopted"
]
KINDS = (
    "project", "diagnosis", "proposal", "draft", "check", "consent", "refusal", "start", "outcome",
    "adoption", "envelope", "halt", "resume", "call", "patch", "trial", "tested",
)  # fmt: skip


@dataclasses.dataclass
class Standing:
    """What the records of a desk come to."""

    project: dict[str, Any] | None = None
    drafts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    states: dict[str, State] = dataclasses.field(default_factory=dict)
    patches: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    trials: set[str] = dataclasses.field(default_factory=set)  # drafts whose code may be tried
    tested: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    consents: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    kept: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # draft -> arms
    unanswered: dict[str, str] = dataclasses.field(default_factory=dict)  # draft -> why
    envelopes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    enveloped: dict[str, float] = dataclasses.field(default_factory=dict)  # FLOPs approved in each
    consented: dict[str, str] = dataclasses.field(default_factory=dict)  # draft -> its envelope
    adopted: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    is_halted: bool = False
    first_start: float | None = None
    flops: float = 0.0  # of all that was started
    usd: float = 0.0  # of all calls, the open ones at the most they may cost
    calls: dict[str, float] = dataclasses.field(default_factory=dict)


def fold(records: Iterable[Record], key: bytes | None) -> tuple[Standing, list[str]]:
    """The desk after these records, and a line for every step that was not allowed.

    Such a step has no effect: a forged consent approves nothing.  `key` is the person's own
    (signing.py); without it no signature counts.
    """
    standing, problems = Standing(), list[str]()
    for record in records:
        if record.kind not in KINDS and not _is_of_draft(record):
            continue
        try:
            problem = obstacle(standing, record, is_signed(record, key))
            if problem is None:
                _apply(standing, record)
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            problem = f"lacks a field or holds another type: {e}"
        if problem:
            problems.append(f"record {record.seq}: {record.kind} {problem}")
    return standing, problems


def _is_of_draft(record: Record) -> bool:
    """The runner's note that a protocol belongs to a draft."""
    return record.kind == "approval" and str(record.body.get("by")).startswith("draft ")


def obstacle(standing: Standing, record: Record, is_by_person: bool) -> str | None:
    """Why a record may not stand here; None where it may."""
    body, kind = record.body, record.kind
    if kind in ("project", "envelope", "resume", "trial") and not is_by_person:
        return "is not signed by a person"
    if kind in ("project", "diagnosis", "proposal", "halt", "resume"):
        return None
    if kind == "envelope":
        return None if body["id"] not in standing.envelopes else "was signed before"
    if kind == "approval":
        state = standing.states.get(body["by"].removeprefix("draft "))
        return None if state == "running" else f"of a protocol whose draft is {state}, not running"
    if kind == "call":
        return _call_obstacle(standing, body)
    if kind == "patch":
        return None if content_id(body["diff"]) == body["id"] else "is not the one of its id"
    if kind == "draft":
        unknown = patches_of(body) - standing.patches.keys()
        if unknown:
            return f"names patch {min(unknown)[:12]}, which is not in the ledger"
        return "was drafted before" if body["id"] in standing.drafts else None
    if body["draft"] not in standing.drafts:
        return "of a draft that is not in the ledger"
    state = standing.states[body["draft"]]
    if kind == "consent":
        return _consent_obstacle(standing, record, state, is_by_person)
    if kind == "start":
        return _start_obstacle(standing, record, state)
    if kind in ("trial", "tested"):
        return _trial_obstacle(standing, record, state)
    wanted: dict[str, tuple[State, ...]] = {
        "check": ("drafted",),
        "outcome": ("running",),
        "adoption": ("confirmed",),
    }
    wanted["refusal"] = ("drafted", "checked", "approved", "running")
    if state not in wanted[kind]:
        return f"of a draft that is {state}, not {' or '.join(wanted[kind])}"
    if kind == "adoption" and body["arm"] not in standing.kept[body["draft"]]:
        return f"of arm {body['arm']!r}, which was not kept"
    if kind == "adoption" and not is_by_person:
        return _adoption_obstacle(standing, record)
    return None


def _adoption_obstacle(standing: Standing, record: Record) -> str | None:
    """Of one that nobody signed: the envelope that let its draft run must say that it adopts too."""
    body = record.body
    name = standing.consented.get(body["draft"])
    envelope = standing.envelopes.get(name) if name else None
    if envelope is None or not envelope.get("adopts") or body.get("envelope") != name:
        return "is not signed by a person, and its draft's envelope does not adopt"
    if patches_of(standing.drafts[body["draft"]]):
        return "is not signed by a person, and no envelope adopts code"
    if record.time > envelope["until"]:
        return "comes after the envelope's end"
    if standing.is_halted:
        return "while the kill switch is on; `jaxlm research resume` turns it off"
    arms = {arm["name"]: arm["changes"] for arm in standing.drafts[body["draft"]]["arms"]}
    return None if arms[body["arm"]] == body["changes"] else "changes what its draft did not"


def _consent_obstacle(
    standing: Standing, record: Record, state: State, is_by_person: bool
) -> str | None:
    body = record.body
    if state != "checked":
        return f"of a draft that is {state}, not checked"
    draft = standing.drafts[body["draft"]]
    if patches_of(draft) and body["draft"] not in standing.tested:
        return "of a draft with code that was not tried"
    if is_by_person:
        return None
    if patches_of(draft):
        return "is not signed by a person, and no envelope covers code"
    envelope = standing.envelopes.get(body.get("envelope", ""))
    if envelope is None:
        return "is not signed by a person, and names no envelope that is"
    return outside(standing, envelope, draft, record.time)


def _trial_obstacle(standing: Standing, record: Record, state: State) -> str | None:
    draft = record.body["draft"]
    if state != "checked":
        return f"of a draft that is {state}, not checked"
    if not patches_of(standing.drafts[draft]):
        return "of a draft without code"
    if record.kind == "tested":
        return None if draft in standing.trials else "of code that no person let be tried"
    if standing.is_halted:
        return "while the kill switch is on; `jaxlm research resume` turns it off"
    return None


def patches_of(draft: dict[str, Any]) -> set[str]:
    """Ids of the patches that a draft's arms hold."""
    return {arm["changes"][PATCH] for arm in draft["arms"] if PATCH in arm["changes"]}


def outside(
    standing: Standing, envelope: dict[str, Any], draft: dict[str, Any], now: float
) -> str | None:
    """What of a draft an envelope does not cover; None where it covers all."""
    fields = {field for arm in draft["arms"] for field in arm["changes"]}
    fields |= {text.partition("=")[0].strip() for text in draft["promote"]}
    foreign = sorted(fields - set(envelope["fields"]))
    if foreign:
        return f"varies {', '.join(foreign)}, which the envelope does not name"
    if now > envelope["until"]:
        return "comes after the envelope's end"
    spent = standing.enveloped.get(envelope["id"], 0.0)
    if spent + draft["flops"] > envelope["flops"]:
        return f"needs {draft['flops']:.3g} FLOPs; the envelope has {envelope['flops'] - spent:.3g} left"
    return None


def _start_obstacle(standing: Standing, record: Record, state: State) -> str | None:
    draft = standing.drafts[record.body["draft"]]
    if standing.is_halted:
        return "while the kill switch is on; `jaxlm research resume` turns it off"
    if state != "approved":
        return f"of a draft that is {state}, not approved"
    if standing.project is None:
        return "in a project without limits; `jaxlm research init` sets them"
    left = standing.project["max_flops"] - standing.flops
    if draft["flops"] > left:
        return f"needs {draft['flops']:.3g} FLOPs; the project has {left:.3g} left"
    return "comes after the project's last hour" if is_over(standing, record.time) else None


def is_over(standing: Standing, now: float) -> bool:
    """Whether the project's hours are spent."""
    if standing.project is None or standing.first_start is None:
        return False
    return bool(now > standing.first_start + standing.project["max_hours"] * 3600)


def _call_obstacle(standing: Standing, body: dict[str, Any]) -> str | None:
    if body["status"] == "reserved":
        limit = standing.project["max_usd"] if standing.project else 0.0
        if body["call"] in standing.calls:
            return f"{body['call']} was reserved before"
        if standing.usd + body["usd"] > limit:
            return (
                f"may cost {body['usd']:.4f} USD; the project has {limit - standing.usd:.4f} left"
            )
    elif body["call"] not in standing.calls:
        return f"{body['call']} was not reserved"
    return None


def _apply(standing: Standing, record: Record) -> None:
    body, kind = record.body, record.kind
    match kind:
        case "project":
            standing.project = body
        case "draft":
            standing.drafts[body["id"]], standing.states[body["id"]] = body, "drafted"
        case "check":
            standing.states[body["draft"]] = "refused" if body["problems"] else "checked"
        case "patch":
            standing.patches.setdefault(body["id"], body)
        case "trial":
            standing.trials.add(body["draft"])
        case "tested":
            standing.tested[body["draft"]] = body
            if body["problems"]:
                standing.states[body["draft"]] = "refused"
        case "consent":
            standing.states[body["draft"]] = "approved"
            standing.consents[body["draft"]] = body
            name = body.get("envelope")
            if name:
                standing.consented[body["draft"]] = name
                flops = standing.drafts[body["draft"]]["flops"]
                standing.enveloped[name] = standing.enveloped.get(name, 0.0) + flops
        case "refusal":
            standing.states[body["draft"]] = "refused"
        case "start":
            standing.states[body["draft"]] = "running"
            standing.flops += standing.drafts[body["draft"]]["flops"]
            standing.first_start = standing.first_start or record.time
        case "outcome":
            standing.kept[body["draft"]] = list(body["kept"])
            if body.get("unanswered"):
                standing.unanswered[body["draft"]] = body["unanswered"]
            is_confirmed = bool(body["kept"]) and bool(body["is_confirmed"])
            standing.states[body["draft"]] = "confirmed" if is_confirmed else "reviewed"
        case "adoption":
            standing.states[body["draft"]] = "adopted"
            standing.adopted.append(body)
        case "envelope":
            standing.envelopes[body["id"]] = body
        case "halt" | "resume":
            standing.is_halted = kind == "halt"
        case "call":
            standing.usd += body["usd"] - standing.calls.get(body["call"], 0.0)
            standing.calls[body["call"]] = body["usd"]


def append(ledger: Ledger, key: bytes | None, kind: str, body: Any) -> Record:
    """Writes a step that needs no signature, where it is allowed at this moment.

    Raises RunError with what stands in the way.
    """
    plain = to_jsonable(body)

    def guard(records: list[Record]) -> None:
        standing, _ = fold(records, key)
        step = Record(len(records), time.time(), kind, plain, "", "")
        problem = obstacle(standing, step, is_by_person=False)
        if problem:
            raise RunError(f"{kind} {problem}")

    return ledger.append(kind, plain, guard)
