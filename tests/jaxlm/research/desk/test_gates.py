# SPDX-License-Identifier: Apache-2.0
"""Nothing starts or is adopted without a person's consent to that very draft.

The state machine is checked against a specification written apart from it, over every short
sequence of steps, honest and forged.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest

from jaxlm.core.errors import RunError
from jaxlm.research.desk import gates, person
from jaxlm.research.desk.signing import append_signed, own_key, read_key
from jaxlm.research.ledger import FIRST, Ledger, Record, seal
from tests.jaxlm.research.desk.workshop import begun, drafted, yes

KEY = bytes(32)
DRAFT = {
    "arms": [{"name": "arm", "changes": {"OptimConfig.b1": "0.8"}}],
    "promote": [],
    "flops": 1.0,
}
BY = {"by": "somebody"}

# step -> (kind, body, whether the person signs it)
STEPS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "draft": ("draft", {**DRAFT, "id": "A"}, False),
    "check": ("check", {"draft": "A", "problems": []}, False),
    "bad check": ("check", {"draft": "A", "problems": ["unfair"]}, False),
    "consent": ("consent", {"draft": "A", **BY}, True),
    "forged consent": (
        "consent",
        {"draft": "A", "by": "person", "signature": "00", "after": ""},
        False,
    ),
    "consent to B": ("consent", {"draft": "B", **BY}, True),
    "refusal": ("refusal", {"draft": "A", **BY}, False),
    "halt": ("halt", BY, False),
    "resume": ("resume", BY, True),
    "forged resume": ("resume", BY, False),
    "start": ("start", {"draft": "A", **BY}, False),
    "outcome": ("outcome", {"draft": "A", "kept": ["arm"], "is_confirmed": True}, False),
    "plain outcome": ("outcome", {"draft": "A", "kept": ["arm"], "is_confirmed": False}, False),
    "adoption": ("adoption", {"draft": "A", "arm": "arm", "changes": {}, **BY}, True),
    "forged adoption": ("adoption", {"draft": "A", "arm": "arm", "changes": {}, **BY}, False),
}
LIMITS = {"config": [], "overrides": [], "max_flops": 2.0, "max_usd": 0.0, "max_hours": 1.0}


def chain(steps: tuple[str, ...]) -> list[Record]:
    """Records of the steps, after a project that is signed."""
    from jaxlm.research.desk.signing import _mac

    records: list[Record] = []
    previous = FIRST
    told = [("project", LIMITS, True), *(STEPS[s] for s in steps)]
    for seq, (kind, body, is_signed) in enumerate(told):
        plain = dict(body)
        if is_signed:
            plain["after"] = previous
            plain["signature"] = _mac(kind, plain, KEY)
        records.append(seal(seq, float(seq), kind, plain, previous))
        previous = records[-1].hash
    return records


def allowed(steps: tuple[str, ...]) -> tuple[str, bool]:
    """The state of draft A and whether nothing forbidden was tried: the specification."""
    state, halted, clean = "none", False, True
    moves = {
        ("none", "draft"): "drafted", ("drafted", "check"): "checked",
        ("drafted", "bad check"): "refused", ("checked", "consent"): "approved",
        ("drafted", "refusal"): "refused", ("checked", "refusal"): "refused",
        ("approved", "refusal"): "refused", ("running", "refusal"): "refused",
        ("approved", "start"): "running",
        ("running", "outcome"): "confirmed",
        ("running", "plain outcome"): "reviewed",
        ("confirmed", "adoption"): "adopted",
    }  # fmt: skip
    for step in steps:
        if step in ("halt", "resume"):
            halted = step == "halt"
        elif (state, step) in moves and not (step == "start" and halted):
            state = moves[state, step]
        else:
            clean = False
    return state, clean


ROAD = ("draft", "check", "consent", "start", "outcome", "adoption")


@pytest.mark.parametrize("far", range(len(ROAD) + 1))
def test_any_two_steps_from_anywhere_end_where_the_specification_says(far: int) -> None:
    starts = [ROAD[:far]] + ([(*ROAD[:4], "plain outcome")] if far == len(ROAD) else [])
    for start, two in itertools.product(starts, itertools.product(STEPS, repeat=2)):
        steps = (*start, *two)
        found, problems = gates.fold(chain(steps), KEY)
        state, is_clean = allowed(steps)
        assert found.states.get("A", "none") == state, steps
        assert (not problems) == is_clean, (steps, problems)


def test_every_way_to_a_running_draft_passes_a_signed_consent() -> None:
    """Breadth first over all reachable states: no other last step leads to approved or adopted."""
    reached: dict[str, set[str]] = {}
    frontier: list[tuple[str, ...]] = [()]
    for _ in range(7):
        following = []
        for steps in frontier:
            before = gates.fold(chain(steps), KEY)[0]
            for step in STEPS:
                after = gates.fold(chain((*steps, step)), KEY)[0]
                if after.states != before.states or after.is_halted != before.is_halted:
                    reached.setdefault(after.states.get("A", "none"), set()).add(step)
                    following.append((*steps, step))
        frontier = list({tuple(s): s for s in following}.values())[:60]
    assert reached["approved"] <= {"consent", "halt", "resume"}
    assert reached["running"] <= {"start", "halt", "resume"}
    assert reached["adopted"] <= {"adoption", "halt", "resume"}
    assert {"approved", "running", "confirmed", "adopted"} <= set(reached)


def test_without_the_key_no_signature_counts() -> None:
    steps = ("draft", "check", "consent", "start")
    assert gates.fold(chain(steps), KEY)[0].states["A"] == "running"
    assert gates.fold(chain(steps), bytes(31) + b"1")[0].states["A"] == "checked"
    assert gates.fold(chain(steps), None)[0].states["A"] == "checked"


def test_a_copied_signature_is_worth_nothing(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    desk.halt("stop")
    assert person.resume(desk, yes)
    old = desk.records()[-1].body
    desk.halt("stop again")
    desk.ledger.append("resume", old)
    assert desk.standing().is_halted


def test_limits_bind(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    first, second = drafted(desk, b1="0.8"), drafted(desk, b1="0.5")
    for name in (first, second):
        assert person.approve(desk, name[:8], yes)
    flops = desk.standing().drafts[first]["flops"]
    limits = {**LIMITS, "config": ["base.gin"], "promote": [], "max_flops": 1.5 * flops}
    append_signed(desk.ledger, "project", limits, own_key())
    gates.append(desk.ledger, read_key(), "start", {"draft": first, **BY})
    with pytest.raises(RunError, match="the project has .* left"):
        gates.append(desk.ledger, read_key(), "start", {"draft": second, **BY})


@pytest.mark.parametrize(
    ("fields", "share", "hours", "want"),
    [
        (("OptimConfig.b1",), 1.5, 1.0, "approved"),
        (("OptimConfig.b2",), 1.5, 1.0, "checked"),
        (("OptimConfig.b1",), 0.9, 1.0, "checked"),
        (("OptimConfig.b1",), 1.5, -1.0, "checked"),
    ],
)
def test_an_envelope_covers_what_it_names(
    tmp_path: Path, fields: tuple[str, ...], share: float, hours: float, want: str
) -> None:
    import time

    from jaxlm.research.desk.records import Envelope

    desk = begun(tmp_path)
    name = drafted(desk, b1="0.8")
    flops = share * desk.standing().drafts[name]["flops"]
    envelope = Envelope(fields=fields, flops=flops, until=time.time() + hours * 3600, by="me")
    body = {"id": envelope.id, **vars(envelope)}
    desk.ledger.append("envelope", body)  # unsigned: worth nothing
    desk.approve_within_envelope(name)
    assert desk.standing().states[name] == "checked"
    append_signed(desk.ledger, "envelope", body, own_key())
    desk.approve_within_envelope(name)
    assert desk.standing().states[name] == want
    assert Ledger(Path("research/ledger.jsonl")).of_kind("consent") == [] or want == "approved"
