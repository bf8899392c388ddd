# SPDX-License-Identifier: Apache-2.0
"""The model check of the gates: no reachable state runs or adopts anything unapproved.

The state machine is compared with a specification written apart from it, over every short sequence of
steps, honest and forged, and over every condition that can be reached at all.
"""

import dataclasses
import functools
import itertools
from typing import Any

from jaxlm.bench.attacks.attack import GotThroughError
from jaxlm.core.canonical import content_id
from jaxlm.research.desk import gates
from jaxlm.research.desk.signing import mac
from jaxlm.research.ledger import FIRST, Record, seal
from jaxlm.research.records import PATCH

KEY = bytes(32)
BY = {"by": "somebody"}
PLAIN = {"OptimConfig.b1": "0.8"}
DIFF = "a diff"
CODE = {PATCH: content_id(DIFF)}
LIMITS = {"config": [], "overrides": [], "max_flops": 2.0, "max_usd": 0.0, "max_hours": 1.0}
# names even code, as no envelope does that the program offers to sign
WIDEST = {"id": "E", "fields": [*PLAIN, PATCH], "flops": 9.0, "until": 1e9, "adopts": True, **BY}
Step = tuple[str, dict[str, Any], bool]  # kind, body, whether the person signs it


def drafting(name: str, changes: dict[str, str]) -> Step:
    arms = [{"name": "arm", "changes": changes}]
    return "draft", {"arms": arms, "promote": [], "flops": 1.0, "id": name}, False


# a draft B with the same code was tried and approved: nothing of that counts for A
BEGINNING: list[Step] = [
    ("project", LIMITS, True),
    ("envelope", WIDEST, True),
    ("patch", {"id": CODE[PATCH], "diff": DIFF}, False),
    drafting("B", CODE),
    ("check", {"draft": "B", "problems": []}, False),
    ("trial", {"draft": "B", **BY}, True),
    ("tested", {"draft": "B", "problems": []}, False),
    ("consent", {"draft": "B", **BY}, True),
]


def steps_of(changes: dict[str, str]) -> dict[str, Step]:
    """Every step, honest and forged, that somebody may try with a draft A of these changes."""
    forged = {"by": "person", "signature": "00", "after": ""}
    adoption = {"draft": "A", "arm": "arm", "changes": changes, **BY}
    return {
        "draft": drafting("A", changes),
        "draft of unknown code": drafting("A", {PATCH: "unknown"}),
        "forged patch": ("patch", {"id": "unknown", "diff": DIFF}, False),
        "check": ("check", {"draft": "A", "problems": []}, False),
        "bad check": ("check", {"draft": "A", "problems": ["unfair"]}, False),
        "trial": ("trial", {"draft": "A", **BY}, True),
        "forged trial": ("trial", {"draft": "A", **forged}, False),
        "tested": ("tested", {"draft": "A", "problems": []}, False),
        "bad tested": ("tested", {"draft": "A", "problems": ["its tests fail"]}, False),
        "consent": ("consent", {"draft": "A", **BY}, True),
        "forged consent": ("consent", {"draft": "A", **forged}, False),
        "consent to B": ("consent", {"draft": "B", **BY}, True),
        "enveloped consent": ("consent", {"draft": "A", "envelope": "E", **BY}, False),
        "signed enveloped consent": ("consent", {"draft": "A", "envelope": "E", **BY}, True),
        "refusal": ("refusal", {"draft": "A", **BY}, False),
        "halt": ("halt", BY, False),
        "resume": ("resume", BY, True),
        "forged resume": ("resume", BY, False),
        "start": ("start", {"draft": "A", **BY}, False),
        "outcome": ("outcome", {"draft": "A", "kept": ["arm"], "is_confirmed": True}, False),
        "plain outcome": ("outcome", {"draft": "A", "kept": ["arm"], "is_confirmed": False}, False),
        "adoption": ("adoption", adoption, True),
        "forged adoption": ("adoption", adoption, False),
        "enveloped adoption": ("adoption", {**adoption, "envelope": "E"}, False),
    }


STEPS = {False: steps_of(PLAIN), True: steps_of(CODE)}  # by whether the draft has code


@functools.cache
def chain(steps: tuple[str, ...], has_code: bool = False) -> tuple[Record, ...]:
    """Records of the steps, after the beginning."""
    if not steps:
        return functools.reduce(
            lambda records, step: (*records, sealed(step, records)), BEGINNING, ()
        )
    before = chain(steps[:-1], has_code)
    return (*before, sealed(STEPS[has_code][steps[-1]], before))


def sealed(step: Step, before: tuple[Record, ...]) -> Record:
    kind, body, is_signed = step
    previous = before[-1].hash if before else FIRST
    plain = dict(body)
    if is_signed:
        plain["after"] = previous
        plain["signature"] = mac(kind, plain, KEY)
    return seal(len(before), float(len(before)), kind, plain, previous)


MOVES = {
    ("none", "draft"): "drafted", ("drafted", "check"): "checked",
    ("drafted", "bad check"): "refused",
    ("checked", "trial"): "checked", ("checked", "tested"): "checked",
    ("checked", "bad tested"): "refused",
    ("checked", "consent"): "approved",
    ("checked", "enveloped consent"): "approved",
    ("checked", "signed enveloped consent"): "approved",
    ("drafted", "refusal"): "refused", ("checked", "refusal"): "refused",
    ("approved", "refusal"): "refused", ("running", "refusal"): "refused",
    ("approved", "start"): "running",
    ("running", "outcome"): "confirmed",
    ("running", "plain outcome"): "reviewed",
    ("confirmed", "adoption"): "adopted",
    ("confirmed", "enveloped adoption"): "adopted",
}  # fmt: skip


def allowed(steps: tuple[str, ...], has_code: bool) -> tuple[str, bool]:
    """The state of draft A and whether nothing forbidden was tried: the specification."""
    state, halted, clean = "none", False, True
    may_try = tried = is_enveloped = False
    for step in steps:
        if step in ("halt", "resume"):
            halted = step == "halt"
            continue
        forbidden = [
            (state, step) not in MOVES,
            halted and step in ("start", "trial", "enveloped adoption"),
            not has_code and step in ("trial", "tested", "bad tested"),
            not may_try and step in ("tested", "bad tested"),
            has_code and not tried and step in ("consent", "signed enveloped consent"),
            has_code and step in ("enveloped consent", "enveloped adoption"),
            not is_enveloped and step == "enveloped adoption",
        ]
        if any(forbidden):
            clean = False
            continue
        state = MOVES[state, step]
        may_try |= step == "trial"
        tried |= step == "tested"
        is_enveloped |= step in ("enveloped consent", "signed enveloped consent")
    return state, clean


END = ("start", "outcome", "adoption")
TRIED = ("draft", "check", "trial", "tested")
# by name: whether with code, the road, and from where on it is another than one before it
ROADS = {
    "plain": (False, ("draft", "check", "consent", *END), 0),
    "enveloped": (False, ("draft", "check", "enveloped consent", *END), 3),
    "not confirmed": (False, ("draft", "check", "consent", "start", "plain outcome"), 5),
    "code": (True, (*TRIED, "consent", *END), 0),
    "code, and an envelope named": (True, (*TRIED, "signed enveloped consent", *END), 5),
}


def check_road(name: str) -> int:
    """Any two steps from anywhere on a road end where the specification says: how many were tried.

    Raises GotThroughError for the first that do not.
    """
    has_code, road, first = ROADS[name]
    tried = 0
    for far in range(first, len(road) + 1):
        for two in itertools.product(STEPS[has_code], repeat=2):
            steps = (*road[:far], *two)
            found, problems = gates.fold(chain(steps, has_code), KEY)
            state, is_clean = allowed(steps, has_code)
            tried += 1
            if found.states.get("A", "none") != state or (not problems) != is_clean:
                raise GotThroughError(f"{' '.join(steps)}: {found.states.get('A')}, not {state}")
    return tried


def condition(standing: gates.Standing) -> str:
    """All that later steps depend on: without times and signatures."""
    return repr(dataclasses.replace(standing, first_start=None, consents={}, adopted=[]))


def check_reachable(has_code: bool) -> int:
    """Breadth first over all conditions that can be reached, by however many steps: how many.

    Raises GotThroughError for a way to a running or an adopted draft past a person's signature.
    """
    into: dict[str, set[str]] = {}  # state -> the last steps that lead there from another
    ways: dict[str, tuple[str, ...]] = {}
    frontier: list[tuple[str, ...]] = [()]
    while frontier:
        steps = frontier.pop(0)
        before = gates.fold(chain(steps, has_code), KEY)[0]
        for step in STEPS[has_code]:
            longer = (*steps, step)
            after = gates.fold(chain(longer, has_code), KEY)[0]
            if after.states != before.states:
                into.setdefault(after.states["A"], set()).add(step)
            if condition(after) not in ways:
                ways[condition(after)] = longer
                frontier.append(longer)
            _check_tried(longer, after.states.get("A"), has_code)
    signed = {"consent", "signed enveloped consent"}
    wanted = {
        "approved": signed if has_code else signed | {"enveloped consent"},
        "running": {"start"},
        "confirmed": {"outcome"},
        "adopted": {"adoption"} if has_code else {"adoption", "enveloped adoption"},
    }
    for state, steps_in in wanted.items():
        if into[state] != steps_in:
            raise GotThroughError(f"{state} is reached by {sorted(into[state])}")
    return len(ways)


def _check_tried(steps: tuple[str, ...], state: str | None, has_code: bool) -> None:
    runs = has_code and state in ("approved", "running", "confirmed", "adopted")
    if runs and not {"trial", "tested"} <= set(steps):
        raise GotThroughError(f"{' '.join(steps)}: {state}, and its code was not tried")
