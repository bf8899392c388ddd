# SPDX-License-Identifier: Apache-2.0
"""From a proposal to an adopted change, on runs whose truth is known."""

import concurrent.futures
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxlm.cli.main import main
from jaxlm.core.errors import ConfigError, RunError, UnanswerableError
from jaxlm.research import runner
from jaxlm.research.desk import person, trials
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.report import sections
from jaxlm.research.desk.running import run_draft
from jaxlm.research.launch import Workers
from jaxlm.research.runner import Means
from jaxlm.research.verify import verify
from jaxlm.telemetry.readable import number
from tests.jaxlm.research.desk.workshop import begun, yes
from tests.jaxlm.research.fake import FakeWorkers

GOOD, NULL = ("b1", 0.8), ("b2", 0.99)
EFFECTS: dict[tuple[str, Any], float] = {GOOD: -0.1, NULL: 0.0}


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    return FakeWorkers(EFFECTS, {GOOD: -0.08}).install(monkeypatch)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return begun(tmp_path, overrides=("TrainConfig.num_steps = 60",), max_flops=1e13)


def means(desk: Desk) -> Means:
    return Means(project=desk.project, progress=lambda *news: None)


def asked(desk: Desk) -> str:
    """A draft of a good and a useless change."""
    good = desk.propose("good", {"OptimConfig.b1": "0.8"}, "to see", -0.05, -0.2, 0.1).id
    null = desk.propose("null", {"OptimConfig.b2": "0.99"}, "to see", -0.05, -0.2, 0.1).id
    return desk.draft([good, null], "one helps", smallest_effect=0.02).id


def test_from_proposal_to_adoption(desk: Desk, workers: FakeWorkers) -> None:
    draft = asked(desk)
    with pytest.raises(RunError, match="start of a draft that is checked, not approved"):
        run_draft(desk, draft, means(desk))
    assert workers.trained == []
    assert person.approve(desk, draft[:8], yes)
    stages = run_draft(desk, draft, means(desk))
    assert [stage.protocol.stage for stage in stages] == ["screen", "confirmation"]
    assert desk.standing().states[draft] == "confirmed"
    assert desk.standing().kept[draft] == ["good"]
    with pytest.raises(ConfigError, match="'null' was not kept; kept: good"):
        person.adopt(desk, draft[:8], "null", yes)
    before = desk.config()
    assert person.adopt(desk, draft[:8], "good", yes)
    assert desk.config().optim.b1 == 0.8 and before.optim.b1 == 0.9
    assert verify(desk.ledger, desk.project) == []
    assert desk.propose("again", {"OptimConfig.b2": "0.99"}, "", 0.0, -0.1, 0.1).repeats is not None
    with pytest.raises(ConfigError, match="changes nothing"):  # it is adopted
        desk.propose("good", {"OptimConfig.b1": "0.8"}, "", 0.0, -0.1, 0.1)


@pytest.mark.parametrize("title", ["", "\n", "baseline", "baseline, 2 updates", "a + b"])
def test_a_title_that_cannot_name_an_arm_is_refused(desk: Desk, title: str) -> None:
    with pytest.raises(ConfigError, match="an arm cannot be named"):
        desk.propose(title, {"OptimConfig.b1": "0.7"}, "", 0.0, -0.1, 0.1)


def test_two_arms_of_one_title_are_refused(desk: Desk) -> None:
    same = [
        desk.propose("same", {"OptimConfig.b1": b1}, "", 0.0, -0.1, 0.1).id for b1 in ("0.7", "0.6")
    ]
    with pytest.raises(ConfigError, match="two proposals are called 'same'"):
        desk.draft(same, "which?", 2)


def test_a_review_is_what_the_ledger_holds(
    desk: Desk, workers: FakeWorkers, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = asked(desk)
    assert desk.review(draft).stages == []
    assert main(["research", "review"]) == 2
    assert "nothing was reviewed yet" in capsys.readouterr().err
    person.approve(desk, draft[:8], yes)
    run_draft(desk, draft, means(desk))
    told = desk.review(draft[:8])
    assert [stage.stage for stage in told.stages] == ["screen", "confirmation"]
    screen = told.stages[0]
    assert [(v.arm, v.decision, v.seeds) for v in screen.verdicts] == [
        ("good", "keep", 4), ("null", "discard", 4),
    ]  # fmt: skip
    body = desk.records()[screen.record].body
    assert [(v.effect, v.low, v.high) for v in screen.verdicts] == [
        (v["effect"], v["low"], v["high"]) for v in body["verdicts"]
    ]
    assert main(["research", "review", draft[:8]]) == 0
    said = capsys.readouterr().out
    assert f"{screen.verdicts[0].effect:+.4f}" in said and "on fresh seeds" in said


def test_proposals_are_told_with_what_they_change_cost_and_promise(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["research", "propose", "--count", "3"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    for told, p in zip(lines, desk.ledger.of_kind("proposal"), strict=False):
        effect, low, high = p["predicted"]
        for words in (
            p["id"][:12], p["title"], *(f"{k} = {v}" for k, v in p["changes"].items()),
            f"{effect:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{number(p['flops'])}FLOPs", number(p["score"]),
        ):  # fmt: skip
            assert words in told


def test_a_pilot_runs_and_has_no_verdicts(desk: Desk, workers: FakeWorkers) -> None:
    draft = desk.enter(trials.pilot(desk)).id
    person.approve(desk, draft[:8], yes)
    assert main(["research", "run"]) == 0
    assert desk.standing().states[draft] == "reviewed"


def test_what_changed_since_the_consent_is_another_question(
    desk: Desk, workers: FakeWorkers
) -> None:
    draft = asked(desk)
    person.approve(desk, draft[:8], yes)
    config = Path("base.gin")
    config.write_text(config.read_text() + "OptimConfig.weight_decay = 0.2\n")
    with pytest.raises(RunError, match="not what was approved any more .*base"):
        run_draft(desk, draft, means(desk))
    assert workers.trained == []


def test_an_interrupted_draft_goes_on_and_is_paid_once(
    desk: Desk, workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = asked(desk)
    person.approve(desk, draft[:8], yes)
    train, calls = runner.train_and_judge, []

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(runner, "train_and_judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_draft(desk, draft, means(desk))
    assert desk.standing().states[draft] == "running"
    flops = desk.standing().flops
    run_draft(desk, draft, means(desk))
    assert desk.standing().states[draft] == "confirmed"
    assert desk.standing().flops == flops == desk.standing().drafts[draft]["flops"]
    assert verify(desk.ledger, desk.project) == []


@pytest.mark.parametrize(
    ("overrides", "diverging", "why"),
    [
        (("TrainConfig.num_steps = 6",), (), "all it has fallen"),
        (("TrainConfig.num_steps = 60",), (("b1", 0.9),), "updates diverged with seed 0"),
    ],
    ids=["too short", "diverging"],
)
def test_a_baseline_that_allows_no_comparison_ends_the_draft_with_the_reason(
    tmp_path: Path, workers: FakeWorkers, overrides: tuple[str, ...], diverging: Any, why: str
) -> None:
    desk = begun(tmp_path, overrides=overrides, max_flops=1e13)
    workers.diverging = diverging
    draft = asked(desk)
    person.approve(desk, draft[:8], yes)
    with pytest.raises(UnanswerableError, match=why):
        run_draft(desk, draft, means(desk))
    (view,) = desk.status().drafts
    assert view.state == "reviewed" and view.kept == []
    assert why in view.problems[0]
    told = "\n".join(line.words for section in sections(desk) for line in section.lines)
    assert "no answer: " in told and why in told
    with pytest.raises(RunError, match="start of a draft that is reviewed, not approved"):
        run_draft(desk, draft, means(desk))
    assert verify(desk.ledger, desk.project) == []


def waiting(verb: str, jobs: Any, workers: Workers, *rest: Any) -> None:
    """Workers that train until they are asked to end."""
    assert workers.stop.wait(30)
    raise RunError("a worker stopped: it was asked to")


def as_an_mcp_server(*args: Any) -> Any:
    """On a thread, where no signal arrives."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(run_draft, *args).result()


@pytest.mark.parametrize("run", [run_draft, as_an_mcp_server])
def test_the_kill_switch_ends_what_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    draft = asked(desk)
    person.approve(desk, draft[:8], yes)
    monkeypatch.setattr(runner, "run_jobs", waiting)
    threading.Timer(0.5, desk.halt, ["stop"]).start()
    start = time.monotonic()
    with pytest.raises(RunError, match="halted by the kill switch"):
        run(desk, draft, means(desk))
    assert time.monotonic() - start < 20
    assert desk.standing().states[draft] == "running"
    with pytest.raises(RunError, match="halted by the kill switch"):  # and does not go on
        run_draft(desk, draft, means(desk))


def test_what_goes_on_ends_with_the_projects_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = begun(
        tmp_path, overrides=("TrainConfig.num_steps = 60",), max_flops=1e13, max_hours=1e-3
    )
    draft = asked(desk)
    person.approve(desk, draft[:8], yes)
    monkeypatch.setattr(runner, "run_jobs", waiting)
    start = time.monotonic()
    with pytest.raises(RunError, match="hours are spent; .* --max-hours"):
        run_draft(desk, draft, means(desk))
    assert time.monotonic() - start < 20
    assert desk.standing().states[draft] == "running"
    assert verify(desk.ledger, desk.project) == []


def test_a_protocol_smuggled_in_for_a_draft_that_is_not_running_shows(
    desk: Desk, workers: FakeWorkers
) -> None:
    draft = asked(desk)
    desk.ledger.append("approval", {"protocol": "0" * 64, "by": f"draft {draft}"})
    assert any(
        "whose draft is checked, not running" in p for p in verify(desk.ledger, desk.project)
    )
