# SPDX-License-Identifier: Apache-2.0
"""Questions after questions, in one project: what was seen before is no news, and is said."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxlm.cli.main import main
from jaxlm.research.jobs import Job
from jaxlm.research.launch import Workers
from jaxlm.research.verify import verify
from tests.e2e.workshop import furnish, refused
from tests.jaxlm.research.fake import FakeWorkers
from tests.jaxlm.research.test_stages import (
    ALL,
    BAD,
    BASE,
    EFFECTS,
    GOOD,
    LARGER,
    LEDGER,
    ablate,
    ideas,
)

ONE = ideas("good: OptimConfig.b1=0.8")


@pytest.fixture(autouse=True)
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return FakeWorkers(dict(EFFECTS), {GOOD: -0.08, BAD: 0.1}).install(monkeypatch)


def figures(review: dict[str, Any]) -> list[Any]:
    return [(v["low"], v["high"], v["project_q"]) for v in review["verdicts"]]


def seeds(stage: str) -> list[list[int]]:
    return [p["seeds"] for p in LEDGER.of_kind("protocol") if p["stage"] == stage]


def test_the_same_runs_asked_about_again_say_nothing_new() -> None:
    for words in ("first", "second", "third", "fourth"):
        reviews = ablate(*ALL, "--seeds", "3", "--hypothesis", words)
    assert [figures(review) for review in reviews] == [figures(reviews[0])] * 4
    assert not any(review["is_exploratory"] for review in reviews)


def test_after_a_policys_search_a_question_has_its_verdict() -> None:
    ablate(*ALL, "--policy", "greedy", "--budget", "20runs")
    *_, review = ablate(*ALL, "--seeds", "3")
    assert review["verdicts"][0]["decision"] == "keep"


def test_fresh_seeds_are_those_that_had_no_verdict() -> None:
    ablate(*ONE, "--seeds", "3")
    ablate(*ONE, "--seeds", "6")
    *_, claim = ablate(*ONE, "--seeds", "2", "--confirm", "2")
    again = ablate(*ONE, "--seeds", "2", "--confirm", "2")
    assert seeds("confirmation") == [[6, 7]] and again[-1] == claim
    assert not claim["is_exploratory"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--no-worse-than", "0.25"], "margin fixed after the verdict"),
        (["--smallest-effect", "0.01"], "smallest_effect fixed after the verdict"),
        (["--predict", "-0.1,-0.2,0"], "predicted fixed after the verdict"),
        (["--set", "TrainConfig.seed=1"], "seeds were added after the verdict"),
    ],
)
def test_what_is_fixed_after_a_verdict_is_exploratory(words: Sequence[str], says: str) -> None:
    ablate(*ONE, "--seeds", "3")
    *_, review = ablate(*ONE, "--seeds", "3", *words)
    assert review["is_exploratory"] and f"good: {says}" in review["departures"][0]


def test_two_who_carry_out_one_protocol_record_each_run_once(
    workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[int | None] = []

    def meanwhile(
        verb: str, jobs: Sequence[Job], w: Workers, hear: Callable[..., None], project: Path
    ) -> None:
        workers(verb, jobs, w, hear, project)
        if verb == "evaluate" and not others:
            others.append(None)
            others.append(main([*BASE, *ONE]))

    monkeypatch.setattr("jaxlm.research.runner.run_jobs", meanwhile)
    ablate(*ONE)
    assert others == [None, 0] and verify(LEDGER, Path("research")) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "8"], "takes no --seeds"),
        (["--max-seeds", "9"], "takes no --max-seeds"),
        (["--confirm", "5"], "takes no --confirm"),
        (["--no-worse-than", "0.5"], "takes no --no-worse-than"),
    ],
)
def test_a_policy_refuses_what_it_would_not_heed(
    words: Sequence[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = ["--policy", "greedy", "--budget", "30runs"]
    assert says in refused([*BASE, *ONE, *policy, *words], capfd)
    assert not LEDGER.path.exists()


def test_a_dry_run_of_a_policy_prints_its_search(capfd: pytest.CaptureFixture[str]) -> None:
    words = [*BASE, *ALL, "--dry-run", "--policy", "greedy", "--budget"]
    assert main([*words, "13runs"]) == 0
    assert '"policy": "greedy"' in capfd.readouterr().out
    assert "the shortest search need" in refused([*words, "9runs"], capfd)


def test_a_gate_that_cannot_be_is_refused_before_the_screen(
    capfd: pytest.CaptureFixture[str],
) -> None:
    promote = ["--promote", "OptimConfig.b1=0.8", *LARGER]
    assert "only the baseline is left" in refused([*BASE, *ONE, *promote], capfd)
    assert not LEDGER.path.exists()


def test_a_budget_without_room_for_the_first_question_is_refused_before_the_pilot(
    capfd: pytest.CaptureFixture[str],
) -> None:
    auto = ["--seeds", "auto", "--smallest-effect", "0.02", "--budget", "1runs"]
    assert "too small" in refused([*BASE, *ONE, *auto], capfd)
    assert not LEDGER.path.exists()
