# SPDX-License-Identifier: Apache-2.0
"""Nothing starts or is adopted without a person's consent to that very draft, and no code without
its trial.
"""

from pathlib import Path

import pytest

from jaxlm.bench.attacks import states
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research.desk import gates, person
from jaxlm.research.desk.signing import KEY_VARIABLE, append_signed, own_key, read_key
from jaxlm.research.ledger import Ledger
from tests.jaxlm.research.desk.workshop import begun, drafted, proposed, yes


@pytest.mark.parametrize("name", states.ROADS)
def test_any_two_steps_from_anywhere_end_where_the_specification_says(name: str) -> None:
    assert states.check_road(name) >= len(states.STEPS[False]) ** 2


@pytest.mark.parametrize("has_code", [False, True])
def test_every_way_to_a_running_draft_passes_a_signed_consent(has_code: bool) -> None:
    assert states.check_reachable(has_code) > 10


def test_without_the_key_no_signature_counts() -> None:
    steps = ("draft", "check", "consent", "start")
    assert gates.fold(states.chain(steps), states.KEY)[0].states["A"] == "running"
    assert gates.fold(states.chain(steps), bytes(31) + b"1")[0].states["A"] == "checked"
    assert gates.fold(states.chain(steps), None)[0].states["A"] == "checked"


def test_a_copied_signature_is_worth_nothing(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    desk.halt("stop")
    assert person.resume(desk, yes)
    old = desk.records()[-1].body
    desk.halt("stop again")
    desk.ledger.append("resume", old)
    assert desk.standing().is_halted


def test_a_project_of_another_key_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = begun(tmp_path)
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "another.key"))
    with pytest.raises(RunError, match="was signed with another key than yours"):
        desk.standing()
    desk.halt("whoever sees it may stop it")


def test_limits_bind(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    first, second = drafted(desk, b1="0.8"), drafted(desk, b1="0.5")
    for name in (first, second):
        assert person.approve(desk, name[:8], yes)
    flops = desk.standing().drafts[first]["flops"]
    limits = {**states.LIMITS, "config": ["base.gin"], "promote": [], "max_flops": 1.5 * flops}
    append_signed(desk.ledger, "project", limits, own_key())
    gates.append(desk.ledger, read_key(), "start", {"draft": first, **states.BY})
    with pytest.raises(RunError, match="the project has .* left"):
        gates.append(desk.ledger, read_key(), "start", {"draft": second, **states.BY})


@pytest.mark.parametrize(
    ("flops", "hours"), [(1e30, float("inf")), (float("inf"), 1.0), (1e9, 0.0)]
)
def test_an_envelope_has_an_end(tmp_path: Path, flops: float, hours: float) -> None:
    with pytest.raises(ConfigError, match="numbers above 0"):
        person.sign_envelope(begun(tmp_path), ["OptimConfig.b1"], flops, hours, yes)


@pytest.mark.parametrize("least", [-1.0, float("nan"), float("inf")])
def test_a_draft_that_would_keep_a_harm_is_not_made(tmp_path: Path, least: float) -> None:
    """Before anybody is asked, and not at its review, when all has been paid."""
    desk = begun(tmp_path)
    with pytest.raises(ConfigError, match="smallest_effect must be >= 0"):
        desk.draft([proposed(desk, b1="0.8")], "it helps", 4, least)
    assert desk.standing().drafts == {}


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
