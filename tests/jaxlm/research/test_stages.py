# SPDX-License-Identifier: Apache-2.0
"""What a campaign decides at each stage, on runs whose truth is known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxlm.cli.main import main
from jaxlm.research.ledger import Ledger
from jaxlm.research.verify import content, verify
from tests.e2e.workshop import furnish, refused
from tests.jaxlm.research.fake import FakeWorkers

LEDGER = Ledger(Path("research/ledger.jsonl"))
BASE = ["ablate", "base.gin", "--set", "TrainConfig.num_steps=60"]
GOOD, NULL, BAD = ("b1", 0.8), ("b2", 0.99), ("eps", 1e-5)
EFFECTS: dict[tuple[str, Any], float] = {GOOD: -0.1, NULL: 0.0, BAD: 0.1}
LARGER = ["--promote", "ModelConfig.num_layers=2"]


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    return FakeWorkers(EFFECTS, {GOOD: -0.08, BAD: 0.1}).install(monkeypatch)


def ablate(*words: str) -> list[dict[str, Any]]:
    """The reviews that are in the ledger afterwards."""
    assert main([*BASE, *words]) == 0
    assert verify(LEDGER, Path("research")) == []
    return LEDGER.of_kind("review")


def ideas(*names: str) -> list[str]:
    return [word for name in names for word in ("--idea", name)]


def decisions(review: dict[str, Any]) -> list[str]:
    return [verdict["decision"] for verdict in review["verdicts"]]


ALL = ideas("good: OptimConfig.b1=0.8", "null: OptimConfig.b2=0.99", "bad: OptimConfig.eps=1e-5")


def test_good_null_and_bad_arms_get_their_verdicts_and_nothing_is_claimed(
    workers: FakeWorkers, capfd: pytest.CaptureFixture[str]
) -> None:
    (review,) = ablate(*ALL, "--smallest-effect", "0.02")
    assert decisions(review) == ["keep", "discard", "discard"]
    assert not review["is_exploratory"] and review["departures"] == []
    out = capfd.readouterr().out
    assert "no gain is claimed" in out and "EXPLORATORY" not in out


@pytest.mark.parametrize(("low", "says"), [("-0.2", "within"), ("-0.03", "outside")])
def test_what_was_predicted_stands_beside_the_best_arm_alone(
    low: str, says: str, workers: FakeWorkers, capfd: pytest.CaptureFixture[str]
) -> None:
    ablate(*ALL, "--predict", f"-1e-2,{low},0")
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "predicted" in line]
    assert "; good came out at -0.0" in line and line.endswith(says)


def test_the_pilot_is_paid_once_and_precedes_every_arm(workers: FakeWorkers) -> None:
    ablate(*ALL)
    kinds = [r.kind for r in LEDGER]
    assert kinds.index("finding") < kinds.index("review")
    assert len(workers.trained) == len({run for run, _ in workers.trained}) == 4 * 4 + 2 * 2
    (finding,) = LEDGER.of_kind("finding")
    assert finding["problem"] is None and 0 < finding["fall"] < 0.25


def test_a_length_at_which_the_loss_still_falls_fast_is_refused(
    workers: FakeWorkers, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["ablate", "base.gin", "--set", "TrainConfig.num_steps=6", *ALL]
    line = refused(words, capfd)
    assert "all it has fallen" in line and "--any-horizon" in line
    assert LEDGER.of_kind("review") == []
    assert main([*words, "--any-horizon"]) == 0
    (review,) = LEDGER.of_kind("review")
    assert "overruled" in review["departures"][0] and review["is_exploratory"]
    assert "EXPLORATORY: the pilot refused" in capfd.readouterr().out


def test_only_what_holds_at_the_larger_scale_is_adopted(
    workers: FakeWorkers, capfd: pytest.CaptureFixture[str]
) -> None:
    workers.effects[("weight_decay", 0.3)] = -0.1
    workers.larger[("weight_decay", 0.3)] = 0.05  # turns
    turning = ideas("turns: OptimConfig.weight_decay=0.3")
    screen, gate, claim = ablate(*ALL, *turning, *LARGER, "--confirm", "3")
    assert decisions(screen) == ["keep", "inconclusive", "discard", "keep"]
    assert [(v["arm"], v["decision"]) for v in gate["verdicts"]] == [
        ("good", "keep"),
        ("turns", "discard"),
    ]
    (verdict,) = claim["verdicts"]
    assert verdict["arm"] == "good" and verdict["low"] < -0.08 < verdict["high"]
    protocols = {p["stage"]: p for p in LEDGER.of_kind("protocol")}
    seeds = [set(protocols[s]["seeds"]) for s in ("screen", "gate", "confirmation")]
    assert not seeds[0] & seeds[1] and not (seeds[0] | seeds[1]) & seeds[2]
    assert protocols["gate"]["follows"] == protocols["screen"]["id"]
    out = capfd.readouterr().out
    assert "turns: " in out and "not adopted" in out and "adopted" in out


def test_seeds_are_added_only_to_arms_that_are_not_settled(workers: FakeWorkers) -> None:
    (review,) = ablate(*ALL, "--seeds", "2", "--max-seeds", "8")
    verdicts = {v["arm"]: v for v in review["verdicts"]}
    assert verdicts["good"]["decision"] == "keep" and verdicts["bad"]["decision"] == "discard"
    assert verdicts["good"]["n"] < verdicts["null"]["n"]
    assert not review["is_exploratory"]


def test_seeds_added_after_a_verdict_are_a_departure(workers: FakeWorkers) -> None:
    ablate(*ALL, "--seeds", "3")
    _, second = ablate(*ALL, "--seeds", "5")
    assert second["is_exploratory"]
    assert "good, null, bad: seeds were added after the verdict" in second["departures"][0]


def test_a_simplification_is_kept_where_it_costs_less_than_the_margin(workers: FakeWorkers) -> None:
    workers.effects[("clip_norm", None)] = 0.005
    free = ideas("no clipping: OptimConfig.clip_norm=None")
    (review,) = ablate(*ALL, *free, "--no-worse-than", "0.05", "--seeds", "6")
    assert decisions(review) == ["keep", "keep", "discard", "keep"]
    assert [v["reason"] for v in review["verdicts"][:2]] == [
        "no worse than 0.05", "within 0.05, better or worse",
    ]  # fmt: skip


def test_the_pilot_says_how_many_seeds_it_takes(
    workers: FakeWorkers, capfd: pytest.CaptureFixture[str]
) -> None:
    ablate(*ALL, "--seeds", "auto", "--smallest-effect", "0.02")
    (screen,) = (p for p in LEDGER.of_kind("protocol") if p["stage"] == "screen")
    assert 3 <= len(screen["seeds"]) <= 16
    line = refused([*BASE, *ALL, "--seeds", "auto", "--smallest-effect", "1e-4"], capfd)
    assert "at most 16" in line


def test_an_arm_that_diverges_on_some_seeds_is_never_kept(workers: FakeWorkers) -> None:
    workers.diverging = (GOOD,)
    (review,) = ablate(*ALL)
    assert review["verdicts"][0]["decision"] == "inconclusive"
    assert all(r["metric"] is None for r in LEDGER.of_kind("run") if r["arm"] == "good")


def test_a_budget_of_seconds_is_checked_once_the_pilot_knows_the_speed(
    workers: FakeWorkers, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused([*BASE, *ALL, "--budget", "600s"], capfd)  # an update takes a second
    assert "20 runs need 1.05e+03" in line
    ablate(*ALL, "--budget", "1100s")
    assert len(LEDGER.of_kind("review")) == 1


def test_the_gate_has_to_fit_into_what_is_left(
    workers: FakeWorkers, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused([*BASE, *ALL, *LARGER, "--budget", "20runs"], capfd)
    assert "for one arm alone" in line and not LEDGER.path.exists()
    workers.effects = EFFECTS | {NULL: -0.1}  # two are kept
    assert main([*BASE, *ALL, *LARGER, "--budget", "28runs"]) == 2
    out, err = capfd.readouterr()
    assert "12 runs need 12, 17.5 were spent before" in err.splitlines()[-1]
    assert "null  keep" in out and len(LEDGER.of_kind("review")) == 1  # the screen stands


def cut(ledger: Ledger, records: int) -> None:
    """As a crash leaves it: the head tells of all records but, at times, the last."""
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[:records]))
    told = list(ledger)[: records - records % 2]
    head = {"records": len(told), "hash": told[-1].hash} if told else None
    ledger.head_path.write_text(json.dumps(head))


def interrupted_everywhere(words: Sequence[str]) -> None:
    """From every prefix of the ledger the same command makes the same ledger."""
    assert main([*BASE, *words]) == 0
    whole = content(LEDGER)
    for records in range(sum(1 for _ in LEDGER) - 1, 0, -3):
        cut(LEDGER, records)
        assert main([*BASE, *words]) == 0
        assert content(LEDGER) == whole


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(["--seeds", "2"], id="screen"),
        pytest.param(
            [*LARGER, "--confirm", "2", "--seeds", "2", "--max-seeds", "4"],
            id="all",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_interrupted_campaign_ends_as_an_undisturbed_one(
    workers: FakeWorkers, stages: list[str]
) -> None:
    interrupted_everywhere([*ALL, *stages])


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("early-stop", marks=pytest.mark.slow),
        "adaptive",
        "halving",
        "replicate-all",
        "greedy",
    ],
)
def test_a_policy_finds_the_good_idea_and_claims_it_on_fresh_seeds(
    workers: FakeWorkers, policy: str
) -> None:
    (review,) = ablate(*ALL, "--policy", policy, "--budget", "60runs")
    kept = {v["arm"] for v in review["verdicts"] if v["decision"] == "keep"}
    assert "good" in kept and "bad" not in kept  # greedy keeps what is nothing, too
    assert review["claim"]["low"] < -0.1 < review["claim"]["high"]
    runs = LEDGER.of_kind("run")
    assert all((r["metric"] is None) == (r["status"] != "completed") for r in runs)


def test_a_policy_stops_losers_and_what_is_stopped_has_no_metric(workers: FakeWorkers) -> None:
    many = [f"bad {k}: OptimConfig.eps={k + 1}e-5" for k in range(12)]
    workers.effects |= {("eps", float(f"{k + 1}e-5")): 0.1 + 0.01 * k for k in range(12)}
    (review,) = ablate(*ideas(*many), "--policy", "early-stop", "--budget", "40runs")
    runs = [r for r in LEDGER.of_kind("run") if r["status"] == "stopped"]
    whole = {(r["arm"], r["seed"]) for r in LEDGER.of_kind("run") if r["fraction"] == 1}
    killed = {(r["arm"], r["seed"]) for r in runs} - whole
    assert killed and all(r["metric"] is None and r["reading"] > 2 for r in runs)
    assert max(updates for _, updates in workers.trained) == 60
    assert review["claim"]["notes"]["kills"] >= len({arm for arm, _ in killed}) > 0


def test_a_policy_is_told_which_ideas_change_the_schedule(workers: FakeWorkers) -> None:
    lines = ('wsd: OptimConfig.schedule="wsd"', "eps: OptimConfig.eps=1e-5")
    ablate(*ideas(*lines), "--policy", "early-stop", "--budget", "20runs")
    (search,) = (p["search"] for p in LEDGER.of_kind("protocol") if p["search"])
    assert search["knowledge"]["late"] == ["wsd"]


def test_a_policy_with_a_gate_blocks_what_turns(workers: FakeWorkers) -> None:
    workers.larger[GOOD] = 0.1
    (review,) = ablate(*ALL, *LARGER, "--policy", "greedy", "--budget", "120runs")
    assert decisions(review)[0] == "discard" and review["claim"]["arm"] == "baseline"


@pytest.mark.slow
def test_an_interrupted_policy_ends_as_an_undisturbed_one(workers: FakeWorkers) -> None:
    interrupted_everywhere([*ALL, "--policy", "early-stop", "--budget", "20runs"])


def test_a_policy_is_driven_again_to_verify_its_runs(workers: FakeWorkers) -> None:
    from jaxlm.bench.attacks.ledgers import edited, forge

    ablate(*ALL, "--policy", "greedy", "--budget", "20runs")
    honest, last = list(LEDGER), max(r.seq for r in LEDGER if r.kind == "run")
    forge(LEDGER, lambda _: [*honest[:last], *honest[last + 1 :]])
    assert any("which is not recorded" in p for p in verify(LEDGER, Path("research")))
    forge(LEDGER, lambda _: [*honest[:last], edited(honest[last], seed=99), *honest[last:]])
    assert any("never asked for" in p for p in verify(LEDGER, Path("research")))
