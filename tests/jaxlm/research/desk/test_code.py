# SPDX-License-Identifier: Apache-2.0
"""A draft with code from a model: a person sees its diff, and answers twice, before it may run."""

import dataclasses
import difflib
from pathlib import Path

import pytest

from jaxlm.core.errors import RunError
from jaxlm.research.desk import gates, person, trials
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.signing import read_key
from jaxlm.research.fingerprint import PACKAGE
from jaxlm.research.patch import trial
from jaxlm.research.patch.trial import Trial
from jaxlm.research.records import PATCH
from jaxlm.research.sandbox import sandbox
from tests.jaxlm.research.desk.workshop import begun, drafted, yes

NORM = "jaxlm/nn/norm.py"
TEST = """import jax
import jax.numpy as jnp

from jaxlm.nn.norm import RMSNorm


def test_the_mean_square_of_the_result_is_1():
    norm, x = RMSNorm(eps=1e-6), jnp.arange(1.0, 9.0)
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    assert abs(float((y * y).mean()) - 1) < 1e-3
"""
FINE = Trial(
    claimed_tests="1 passed", params=1, claimed_params=1, flops=1.0, clean_flops=1.0,
    claimed_flops=1.0, clean_cpu_s=1.0, cpu_s=1.0, walls="both", problems=(),
)  # fmt: skip


def norm_patch(eps: str = "2 * self.eps") -> str:
    """A diff of one line, and a test."""
    old = (PACKAGE.parent / NORM).read_text()
    new = old.replace("+ self.eps)", f"+ {eps})")
    code = difflib.unified_diff(
        old.splitlines(True), new.splitlines(True), f"a/{NORM}", f"b/{NORM}"
    )
    test = difflib.unified_diff([], TEST.splitlines(True), "/dev/null", "b/tests/patches/test_n.py")
    return "".join([*code, *test])


def patched(desk: Desk, diff: str) -> str:
    """Id of a checked draft of the patch."""
    proposal = desk.patch("another norm", diff, "to see", -0.01, -0.03, 0.01)
    return desk.draft([proposal.id], "it helps").id


class Person:
    """Answers from a list, and remembers what was shown and which word was asked for."""

    def __init__(self, *answers: bool) -> None:
        self.answers, self.shown, self.wanted = list(answers), list[str](), list[str]()

    def __call__(self, text: str, wanted: str) -> bool:
        self.shown.append(text)
        self.wanted.append(wanted)
        return self.answers.pop(0)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The diffs that were tried; every trial comes out fine."""
    diffs: list[str] = []

    def try_patch(config: object, diff: str, is_weaker_allowed: bool) -> Trial:
        diffs.append(diff)
        return FINE

    monkeypatch.setattr(trial, "try_patch", try_patch)
    return diffs


def test_a_person_answers_twice_and_no_means_no(tmp_path: Path, tried: list[str]) -> None:
    desk, diff = begun(tmp_path), norm_patch()
    name = patched(desk, diff)
    assert desk.standing().states[name] == "checked"

    nobody = Person(False)
    assert not person.approve(desk, name[:8], nobody)
    assert (nobody.wanted, tried, desk.standing().trials) == (["try"], [], set())
    assert "+ 2 * self.eps" in nobody.shown[0]

    curious = Person(True, False)
    assert not person.approve(desk, name[:8], curious)
    assert (curious.wanted, tried) == (["try", name[:6]], [diff])
    assert "processor time" in curious.shown[1]
    assert "+ 2 * self.eps" in curious.shown[1]
    assert desk.standing().states[name] == "checked"
    with pytest.raises(RunError, match="is checked, not approved"):
        gates.append(desk.ledger, read_key(), "start", {"draft": name, "by": "rules"})

    willing = Person(True)  # it was tried before
    assert person.approve(desk, name[:8], willing)
    assert (willing.wanted, len(tried)) == ([name[:6]], 1)
    assert desk.standing().states[name] == "approved"
    assert desk.standing().consents[name]["walls"] == sandbox.level()


def test_code_that_fails_its_trial_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = begun(tmp_path)
    name = patched(desk, norm_patch())
    bad = dataclasses.replace(FINE, problems=("its tests fail: 1 failed",))
    monkeypatch.setattr(trial, "try_patch", lambda *_: bad)
    with pytest.raises(RunError, match=r"is refused: patch .*: its tests fail: 1 failed$"):
        person.approve(desk, name[:8], yes)
    assert desk.standing().states[name] == "refused"


def test_weaker_walls_are_allowed_by_name_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One draft on a machine with one wall: not tried without the word, tried and recorded with it."""
    desk = begun(tmp_path)
    name = patched(desk, norm_patch())
    allowed = []

    def try_patch(config: object, diff: str, is_weaker_allowed: bool) -> Trial:
        allowed.append(is_weaker_allowed)
        if not is_weaker_allowed:
            raise RunError("a sandbox needs namespaces and Landlock")
        return dataclasses.replace(FINE, walls="landlock")

    monkeypatch.setattr(trial, "try_patch", try_patch)
    monkeypatch.setattr(sandbox, "level", lambda: "landlock")
    with pytest.raises(RunError, match="needs namespaces and Landlock"):
        person.approve(desk, name[:8], yes)
    assert desk.standing().states[name] == "checked"
    assert person.approve(desk, name[:8], yes, is_weaker_allowed=True)
    consent = desk.standing().consents[name]
    assert allowed == [False, True]
    assert (consent["is_weaker_allowed"], consent["walls"]) == (True, "landlock")


def test_adopted_code_is_written_for_a_person_to_apply(tmp_path: Path, tried: list[str]) -> None:
    desk, diff = begun(tmp_path), norm_patch()
    name = patched(desk, diff)
    assert person.approve(desk, name[:8], yes)
    gates.append(desk.ledger, read_key(), "start", {"draft": name, "by": "rules"})
    outcome = {"draft": name, "kept": ["another norm"], "is_confirmed": True}
    gates.append(desk.ledger, read_key(), "outcome", outcome)
    before = desk.config()
    asked = Person(True)
    assert person.adopt(desk, name[:8], "another norm", asked)
    assert "git apply" in asked.shown[0]
    files = list((desk.project / "patches").iterdir())
    assert [file.read_text() for file in files] == [diff]
    assert desk.config() == before
    assert desk.standing().adopted[0]["changes"].keys() == {PATCH}
    assert trials.adopted_changes(desk) == {}
    with pytest.raises(RunError, match="nothing was adopted of the config's fields"):
        trials.trial(desk, (1, 2, 3, 4), 2, 2)
    drafted(desk, b1="0.8")


@pytest.mark.slow
@pytest.mark.skipif(sandbox.level() == "none", reason="this machine has no wall")
def test_a_patch_from_proposal_to_approval_with_its_trial_in_the_sandbox(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    name = patched(desk, norm_patch())
    asked = Person(True, True)
    assert person.approve(desk, name[:8], asked, is_weaker_allowed=True)
    assert asked.wanted == ["try", name[:6]]
    print(asked.shown[1])
    (told,) = desk.standing().tested[name]["trials"].values()
    assert "1 passed" in told["claimed_tests"]
    assert told["claimed_params"] == told["params"]
    assert told["claimed_flops"] == pytest.approx(told["clean_flops"], rel=0.01)
    assert desk.standing().states[name] == "approved"
