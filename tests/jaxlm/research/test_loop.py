# SPDX-License-Identifier: Apache-2.0
"""The whole loop on runs whose truth is known: what it adopts, what it forecasts, what it may not do."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxlm.core.errors import RunError, UserError
from jaxlm.research import loop, runner
from jaxlm.research.desk import gates, lint, report
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.person import Ask
from jaxlm.research.desk.records import Project
from jaxlm.research.desk.signing import KEY_VARIABLE, read_key
from jaxlm.research.ledger import Ledger
from jaxlm.research.runner import Means
from jaxlm.research.trial import RATIO
from jaxlm.research.verify import verify
from tests.e2e.workshop import ROOT, furnish
from tests.jaxlm.research.desk.workshop import read, yes
from tests.jaxlm.research.fake import FakeWorkers
from tests.jaxlm.research.terminal import agreed

# of the library's ideas for base.gin, whose learning rate is 0.01
EFFECTS: dict[tuple[str, Any], float] = {
    ("peak_lr", 0.04): -0.2, ("peak_lr", 0.056): -0.35, ("peak_lr", 0.02): -0.1, ("name", "muon"): -0.1,
}  # fmt: skip
TERMS = loop.Terms(rounds=2, arms=4, seeds=3, ladder_seeds=2, trial_seeds=4, smallest_effect=0.02)
SHORT = dataclasses.replace(TERMS, rounds=1, arms=2)
LEDGER = Ledger(Path("research/ledger.jsonl"))


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    """A folder of its own, where nothing was begun."""
    return _furnished(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the loop went to its end, once for all tests that only look."""
    folder = tmp_path_factory.mktemp("loop")
    with pytest.MonkeyPatch.context() as patch:
        _furnished(folder, patch)
        said: list[str] = []
        loop.go_on(begun(), TERMS, said.append)
        (folder / "said").write_text("\n".join(said))
        yield folder


@pytest.fixture
def whole(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


def _furnished(folder: Path, patch: pytest.MonkeyPatch) -> FakeWorkers:
    patch.setenv(KEY_VARIABLE, str(folder / "keys" / "approval.key"))
    patch.chdir(folder)
    furnish(folder)
    return FakeWorkers(EFFECTS).install(patch)


def desk() -> Desk:
    project = Path("research")
    return Desk(project, read, "rules", [], Means(project=project, progress=lambda *news: None))


def begun(terms: loop.Terms = TERMS, ask: Ask = yes, **limits: float) -> Desk:
    given = {"max_flops": 1e13, "max_usd": 0.0, "max_hours": 1.0} | limits
    overrides = ("TrainConfig.num_steps = 60",)
    project = Project(config=("base.gin",), overrides=overrides, promote=(), **given)
    found = desk()
    assert loop.begin(found, project, terms, 1.0, ask) == (ask is yes)
    return found


@pytest.mark.usefixtures("whole")
def test_it_adopts_what_is_good_and_scores_its_forecast() -> None:
    assert verify(LEDGER, Path("research")) == []
    adopted = [a["arm"] for a in LEDGER.of_kind("adoption")]
    assert adopted == ["learning rate x4", "learning rate x1.4"]
    said = Path("said").read_text().splitlines()
    assert said[0].startswith("pilot") and said[-1].startswith("trial at x0.5, x1, x1.5, x2")
    (forecast,), (score,) = LEDGER.of_kind("forecast"), LEDGER.of_kind("score")
    assert score["high"] < 1 and score["not_reached"] == 0
    assert set(score["outcomes"]) == set(forecast["expected"]) and len(score["outcomes"]) == 3
    final = {arm: score["outcomes"][f"final eval/bpb, {arm}"] for arm in ("adopted", "baseline")}
    assert final["adopted"] - final["baseline"] == pytest.approx(-0.35, abs=0.03)


@pytest.mark.usefixtures("whole")
def test_what_a_round_keeps_and_cannot_adopt_is_asked_again() -> None:
    first, second = [d for d in LEDGER.of_kind("draft") if d["proposals"]]
    muon = "Muon for the hidden matrices"
    assert LEDGER.of_kind("outcome")[1]["kept"] == [muon, "learning rate x4", "learning rate x2"]
    assert second["arms"][0]["name"] == muon
    arms = [a["config_id"] for a in (*first["arms"], *second["arms"])]
    assert len(set(arms)) == len(arms)


@pytest.mark.usefixtures("whole")
def test_the_forecast_stands_before_the_first_run_that_it_speaks_of() -> None:
    records = list(LEDGER)
    at = next(r.seq for r in records if r.kind == "forecast")
    trial = records[at].body["protocol"]
    assert min(r.seq for r in records if r.kind == "run" and r.body["protocol"] == trial) > at
    seeds: dict[str, set[int]] = {}
    for run in LEDGER.of_kind("run"):
        seeds.setdefault(run["protocol"], set()).add(run["seed"])
    assert len(seeds[trial]) == 4
    assert not seeds[trial] & set().union(*(s for p, s in seeds.items() if p != trial))
    sizes = {p["id"]: p["flops_per_run"]["baseline"] for p in LEDGER.of_kind("protocol")}
    assert all(sizes[trial] > 1.5 * size for p, size in sizes.items() if p != trial)


@pytest.mark.usefixtures("whole")
def test_every_run_was_covered_by_the_one_signature() -> None:
    consents = LEDGER.of_kind("consent")
    assert len(consents) == 4  # pilot, two rounds, trial
    assert {c["envelope"] for c in consents} == {e["id"] for e in LEDGER.of_kind("envelope")}
    assert all("signature" not in c for c in consents + LEDGER.of_kind("adoption"))


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(
    "forged",
    ["ratio", "order", *(pytest.param(n, marks=pytest.mark.slow) for n in ("expected", "pairs"))],
)
def test_a_forged_forecast_or_score_shows(forged: str, tmp_path: Path) -> None:
    records = [(r.kind, json.loads(json.dumps(r.body))) for r in LEDGER]
    at = next(i for i, (kind, _) in enumerate(records) if kind == "forecast")
    (score,) = (body for kind, body in records if kind == "score")
    if forged == "ratio":
        score["ratio"] *= 0.9
    elif forged == "pairs":
        score["pairs"] = score["pairs"][:-1]
    elif forged == "expected":
        records[at][1]["expected"][RATIO]["high"] = 2.0
    else:  # written once the outcome was known
        records.insert(-2, records.pop(at))
    kept = Ledger(tmp_path / "ledger.jsonl")
    for kind, body in records:
        kept.append(kind, body)
    want = (
        "runs that were there before it" if forged == "order" else "does not follow from the runs"
    )
    assert any(want in line for line in verify(kept, Path("research")))


@pytest.mark.usefixtures("whole")
def test_the_report_tells_the_trial_and_every_number_is_backed() -> None:
    paths = report.write_report(desk(), Path("research"))
    text, html = (path.read_text() for path in paths)
    bodies = {r.seq: r.body for r in LEDGER}
    for words in (RATIO, "forecast", "fresh seeds", "excludes `1`", "came out at"):
        assert words in text
    assert html.count("<svg") >= 6
    told = f"{LEDGER.of_kind('score')[0]['ratio']:.3f}"
    assert told in text
    assert lint.unbacked(text.replace(told, f"{float(told) - 0.111:.3f}"), bodies) != []


@pytest.mark.usefixtures("whole")
def test_the_gates_let_no_other_unsigned_adoption_through() -> None:
    """The envelope's own adoption, with each of its parts forged in turn."""
    records = list(LEDGER)
    honest = next(r for r in records if r.kind == "adoption")
    standing, problems = gates.fold(records[: honest.seq], read_key())
    assert problems == []
    (name,) = standing.envelopes

    def judged(standing: gates.Standing = standing, when: float = 0.0, **body: Any) -> str | None:
        record = dataclasses.replace(honest, body=honest.body | body, time=when or honest.time)
        return gates.obstacle(standing, record, is_by_person=False)

    assert judged() is None
    assert "changes what" in str(judged(changes={"OptimConfig.b1": "0.1"}))
    assert "was not kept" in str(judged(arm="twice the updates at half the batch"))
    assert "does not adopt" in str(judged(envelope="0" * 64))
    assert "envelope's end" in str(judged(when=honest.time + 7200))
    for key in ("adopts", "id"):  # one that does not adopt, and one that nobody signed
        others = {name: standing.envelopes[name] | {"adopts": False}} if key == "adopts" else {}
        found = judged(dataclasses.replace(standing, envelopes=others))
        assert "does not adopt" in str(found)
    assert "kill switch" in str(judged(dataclasses.replace(standing, is_halted=True)))


@pytest.mark.slow
def test_a_stop_anywhere_ends_as_if_there_had_been_none(
    workshop: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before every second batch of runs, and begun again each time."""
    train, calls = runner.train_and_judge, []

    def interrupted(*args: Any) -> Any:
        if args[0]:  # something is left to train
            calls.append(args)
            if len(calls) % 2 == 0:
                raise KeyboardInterrupt
        return train(*args)

    begun(SHORT)
    monkeypatch.setattr(runner, "train_and_judge", interrupted)
    stops = 0
    for _ in range(20):
        try:
            loop.go_on(desk(), SHORT, lambda text: None)
            break
        except KeyboardInterrupt:
            stops += 1
    kinds = [r.kind for r in LEDGER]
    assert stops >= 5 and kinds[-1] == "outcome" and kinds.count("start") == 3
    assert (kinds.count("forecast"), kinds.count("score")) == (1, 1)
    assert verify(LEDGER, Path("research")) == []
    assert len(workshop.trained) == len(set(workshop.trained))


def test_outside_the_limits_it_stops(workshop: FakeWorkers) -> None:
    begun(SHORT, max_flops=3e9)  # the pilot, and little else
    with pytest.raises(RunError, match="did not pass its check: needs .* FLOPs"):
        loop.go_on(desk(), SHORT, lambda text: None)
    assert LEDGER.of_kind("adoption") == []


def test_without_a_signature_nothing_is_run(workshop: FakeWorkers) -> None:
    begun(SHORT, lambda text, wanted: False)
    with pytest.raises(RunError, match="waits for you"):
        loop.go_on(desk(), SHORT, lambda text: None)
    assert workshop.trained == []


def test_where_nothing_helps_nothing_is_adopted_and_no_trial_is_made(
    workshop: FakeWorkers,
) -> None:
    workshop.effects = {}
    said: list[str] = []
    loop.go_on(begun(SHORT), SHORT, said.append)
    assert "nothing was adopted" in said[-1]
    assert LEDGER.of_kind("forecast") == []


def test_a_baseline_that_allows_no_comparison_ends_it_for_good(workshop: FakeWorkers) -> None:
    workshop.diverging = (("peak_lr", 0.01),)  # the baseline's own
    begun(SHORT)
    for _ in range(2):  # the same command again drafts nothing and trains nothing
        with pytest.raises(UserError, match="updates diverged with seed 0"):
            loop.go_on(desk(), SHORT, lambda text: None)
        assert len(workshop.trained) == 6
        assert len(LEDGER.of_kind("draft")) == len(LEDGER.of_kind("outcome")) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_one_command_on_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes: a terminal at which somebody agrees once, and every worker a process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "keys" / "approval.key"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = str(ROOT / "configs" / "poor_baseline.gin")
    command = [sys.executable, "-m", "jaxlm.cli.main", "research", "loop", config]
    command += ["--rounds", "1", "--arms", "3", "--seeds", "3", "--ladder-seeds", "2"]
    code, asked = agreed([*command, "--trial-seeds", "3"], Path("log"))
    said = Path("log").read_text()
    assert code == 0, said
    assert asked.count("to agree") == 1 and "OptimConfig.peak_lr" in asked
    assert verify(LEDGER, Path("research")) == []
    assert "report: research/report.md" in said
