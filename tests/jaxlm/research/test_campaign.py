# SPDX-License-Identifier: Apache-2.0
"""Campaigns on a tiny model: real workers, real ledger, real files."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jaxlm.cli.main import main
from jaxlm.core.errors import RunError
from jaxlm.research import runner, worker
from jaxlm.research.evaluator import evaluate_run
from jaxlm.research.jobs import How, Job, JobRun
from jaxlm.research.ledger import Ledger
from jaxlm.research.verify import content, verify
from jaxlm.telemetry.writer import latest_rows
from jaxlm.train.run_dir import load_config
from tests.e2e.workshop import furnish, refused

ABLATE = ["ablate", "base.gin", "--vary", "OptimConfig.peak_lr=[1e-2,2e-2]", "--seeds", "2"]
ABLATE += ["--any-horizon"]  # four updates are far from settled
LEDGER = Ledger(Path("research/ledger.jsonl"))
CURVE = [("baseline, 2 updates", 0), ("baseline, 2 updates", 1)]
PILOT = [*CURVE, ("baseline", 0), ("baseline", 1)]
SCREEN = [*CURVE, *((arm, seed) for seed in (0, 1) for arm in ("baseline", "peak_lr=2e-2"))]
FIRST = ["protocol", "approval", *["run"] * 4, "finding"]
KINDS = [*FIRST, "protocol", "approval", *["run"] * 6, "review"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ABLATE has run, on one device."""
    folder = tmp_path_factory.mktemp("finished")
    furnish(folder)
    jaxlm(ABLATE, folder)
    return folder


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)


def jaxlm(words: list[str], folder: Path = Path()) -> None:
    command = [sys.executable, "-m", "jaxlm.cli.main", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def losses(run_dir: Path) -> list[float]:
    return [row["train/loss_nats"] for row in latest_rows(run_dir, "train")]


def of(arm: str, seed: int) -> dict[str, Any]:
    return next(r for r in LEDGER.of_kind("run") if (r["arm"], r["seed"]) == (arm, seed))


def test_an_ablation_leaves_a_ledger_that_holds_and_a_page(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    kinds = [record.kind for record in LEDGER]
    assert kinds == KINDS
    assert [(run["arm"], run["seed"]) for run in LEDGER.of_kind("run")] == PILOT + SCREEN
    assert verify(LEDGER, Path("research")) == []
    (review,), (_, protocol) = LEDGER.of_kind("review"), LEDGER.of_kind("protocol")
    (verdict,) = review["verdicts"]
    pairs = [of("peak_lr=2e-2", s)["metric"] - of("baseline", s)["metric"] for s in (0, 1)]
    assert verdict["effect"] == pytest.approx(sum(pairs) / 2)
    page = Path(f"research/{protocol['id'][:12]}.html").read_text()
    assert "peak_lr=2e-2" in page and "exploratory" in page
    assert review["is_exploratory"] and "it was overruled" in review["departures"][0]


def test_people_can_read_the_ledger(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    assert main(["research", "log"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == len(KINDS)
    assert "peak_lr=2e-2, seed 1: " in lines[-2] and "EXPLORATORY" in lines[-1]
    assert main(["research", "show", "0"]) == 0
    assert json.loads(capfd.readouterr().out)["kind"] == "protocol"
    assert main(["research", "verify"]) == 0
    assert f"{len(KINDS)} records, no problem" in capfd.readouterr().out
    assert f"has 0 to {len(KINDS) - 1}" in refused(["research", "show", "99"], capfd)
    assert "`jaxlm ablate` begins one" in refused(["research", "log", "--project", "no"], capfd)


def test_a_run_of_an_arm_is_bit_for_bit_the_run_alone(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    changes = ["OptimConfig.peak_lr=2e-2", "TrainConfig.seed=1", "DataConfig.seed=1"]
    jaxlm(["train", "base.gin", "--run", "alone", *(x for c in changes for x in ("--set", c))])
    run = of("peak_lr=2e-2", 1)
    assert losses(Path("research") / run["directory"]) == losses(Path("alone"))
    final = json.loads(Path("alone/summary.json").read_text())["final"]
    assert run["metric"] == final["eval/bpb"]


def test_what_is_known_is_never_trained_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    asked = []

    def train_and_judge(runs: list[JobRun], *_: object) -> dict[Path, Any]:
        asked.append(len(runs))
        return {}

    monkeypatch.setattr(runner, "train_and_judge", train_and_judge)
    before = content(LEDGER)
    assert main(ABLATE) == 0
    assert content(LEDGER) == before
    shutil.copytree("research", "copy")
    assert main([*ABLATE, "--seeds", "3", "--project", "copy"]) == 0  # one more seed
    assert asked == [0, 0, 0, 2]
    copy = Ledger(Path("copy/ledger.jsonl"))
    reused = [run["is_reused"] for run in copy.of_kind("run")[10:]]
    assert reused == [True] * 6 + [False] * 2
    assert any("seeds were added after" in d for d in copy.of_kind("review")[1]["departures"])


@pytest.mark.slow
def test_members_of_one_program_on_two_devices_equal_runs_alone_to_rounding(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    members = [Path("research") / of("peak_lr=2e-2", seed)["directory"] for seed in (0, 1)]
    runs = [JobRun(load_config(path), "", Path("together") / path.name) for path in members]
    worker.train(Job(tuple(runs), "together"), io.StringIO())
    for run, alone in zip(runs, members, strict=True):
        assert losses(run.directory) == pytest.approx(losses(alone), rel=1e-5)
        summaries = [json.loads((d / "summary.json").read_text()) for d in (run.directory, alone)]
        bpb = [summary["final"]["eval/bpb"] for summary in summaries]
        assert bpb[0] == pytest.approx(bpb[1], rel=1e-5)
        assert json.loads((run.directory / "env.json").read_text())["mesh"]["members"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["in turn", "together"])
def test_a_run_that_pauses_is_the_run_that_does_not(
    finished: Path, monkeypatch: pytest.MonkeyPatch, how: How
) -> None:
    monkeypatch.chdir(finished)
    alone = Path("research") / of("baseline", 0)["directory"]
    config = load_config(alone)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_every=1))
    path = Path("paused") / how.replace(" ", "_")
    for until, status, step in ((2, "preempted", 2), (2, "preempted", 2), (None, "completed", 4)):
        worker.train(Job((JobRun(config, "", path, until),), how), io.StringIO())
        summary = json.loads((path / "summary.json").read_text())
        assert (summary["status"], summary["step"]) == (status, step)
        assert (summary["final"] is None) == (status != "completed")
    assert losses(path) == pytest.approx(losses(alone), rel=1e-5)
    assert [row["step"] for row in latest_rows(path, "eval")] == [1, 2, 3, 4]


def test_a_run_that_was_stopped_is_not_recorded_and_goes_on(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)

    def stopped(verb: str, jobs: list[Job], *_: object) -> None:
        for run in jobs[0].runs:
            run.directory.mkdir(parents=True)
            (run.directory / "summary.json").write_text('{"status": "preempted"}')

    monkeypatch.setattr(runner, "run_jobs", stopped)
    assert main([*ABLATE, "--project", "stopped"]) == 2
    assert "was stopped before its end; the same command goes on" in capfd.readouterr().err
    assert Ledger(Path("stopped/ledger.jsonl")).of_kind("run") == []


def test_a_run_that_claims_what_its_checkpoint_is_not_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, "copy")
    monkeypatch.chdir("copy")
    run = of("baseline", 0)
    path = Path("research") / run["directory"]
    assert evaluate_run(path, run["run_id"])["eval/bpb"] == pytest.approx(run["metric"], rel=1e-6)
    summary = json.loads((path / "summary.json").read_text())
    summary["final"]["eval/bpb"] *= 0.9
    (path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RunError, match="claims"):
        evaluate_run(path, run["run_id"])
    with pytest.raises(RunError, match="changed since it was planned"):
        evaluate_run(path, "another run")


@pytest.mark.slow
def test_a_campaign_killed_again_and_again_ends_with_the_undisturbed_ledger(finished: Path) -> None:
    undisturbed = content(Ledger(finished / LEDGER.path))
    command = [sys.executable, "-m", "jaxlm.cli.main", *ABLATE]
    for kill in range(30):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1 + 1.3 * (kill % 11))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    jaxlm(ABLATE)
    assert content(LEDGER) == undisturbed
    assert verify(LEDGER, Path("research")) == []


BAD_INPUT = {
    "unknown field": (["--vary", "OptimConfig.peak_lrr=[1]"], "did you mean 'peak_lr'"),
    "wrong type": (["--vary", 'OptimConfig.peak_lr=["a"]'], "OptimConfig.peak_lr must be"),
    "no list": (["--vary", "OptimConfig.peak_lr=1"], "write FIELD=[A,B]"),
    "same config": (["--vary", "TrainConfig.eval_every=[2]"], "only the baseline is left"),
    "same arms": (["--vary", "OptimConfig.peak_lr=[2e-2,0.02]"], "are the same config"),
    "budget": (["--vary", "OptimConfig.peak_lr=[2e-2]", "--budget", "1e3flops"], "with one seed"),
    "budget unit": (["--vary", "OptimConfig.peak_lr=[2e-2]", "--budget", "3"], "write a positive"),
    "budget of nothing": (["--vary", "OptimConfig.peak_lr=[2e-2]", "--budget", "0s"], "a positive"),
    "token budget": (
        ["--vary", "OptimConfig.peak_lr=[2e-2]", "--budget", "100tokens"],
        "10 runs need 9.22e+03; with one seed 2.56e+03",
    ),
    "metric": (["--vary", "OptimConfig.peak_lr=[2e-2]", "--metric", "eval/x"], "allowed: eval/"),
    "no goal": (
        ["--vary", "OptimConfig.peak_lr=[2e-2]", "--metric", "train/loss_nats"],
        "is no goal",
    ),
    "no seed": (["--vary", "OptimConfig.peak_lr=[2e-2]", "--seeds", "0"], "a number >= 2 or auto"),
    "one seed": (["--vary", "OptimConfig.peak_lr=[2e-2]", "--seeds", "1"], "can conclude nothing"),
    "many seeds": (
        ["--vary", "OptimConfig.peak_lr=[2e-2]", "--seeds", "9999999"],
        "--seeds must be at most 10000, got 9999999",
    ),
    "auto seeds for nothing": (
        ["--vary", "OptimConfig.peak_lr=[2e-2]", "--seeds", "auto"],
        "needs --smallest-effect X",
    ),
    "fewer seeds at most": (
        ["--vary", "OptimConfig.peak_lr=[2e-2]", "--max-seeds", "3"],
        "--max-seeds must be above --seeds 4",
    ),
    "nothing to try": ([], "nothing to try"),
    "twice": (["--vary", "OptimConfig.peak_lr=[2e-2,2e-2]"], "twice: the same config"),
    "no idea": (["--idea", "faster"], "write NAME: FIELD=VALUE"),
    "idea of an unknown field": (["--idea", "x: OptimConfig.lr=1"], "unknown key OptimConfig.lr"),
    "smaller scale": (
        ["--vary", "OptimConfig.peak_lr=[2e-2]", "--promote", "TrainConfig.num_steps=2"],
        "is no larger scale",
    ),
    "one seed of a claim": (
        ["--vary", "OptimConfig.b1=[0.8]", "--confirm", "1"],
        "at least 2 seeds",
    ),
    "unknown policy": (["--vary", "OptimConfig.b1=[0.8]", "--policy", "gredy"], "'greedy'"),
    "policy without a budget": (["--vary", "OptimConfig.b1=[0.8]", "--policy"], "needs a --budget"),
    "policy with too little": (
        ["--vary", "OptimConfig.b1=[0.8]", "--policy", "greedy", "--budget", "5runs"],
        "need 11.5 runs, 11.5 runs",
    ),
    "ideas that exclude each other": (
        ["--vary", "OptimConfig.b1=[0.8,0.7]", "--policy", "--budget", "40runs"],
        "set one field to two values",
    ),
    "two goals": (
        ["--vary", "OptimConfig.b1=[0.8]", "--no-worse-than", "1", "--smallest-effect", "1"],
        "exclude each other",
    ),
    "prediction": (["--vary", "OptimConfig.b1=[0.8]", "--predict", "1,2"], "write EFFECT,LOW,HIGH"),
    "workers": (["--vary", "OptimConfig.b1=[0.8]", "--workers", "0"], "--workers must be >= 1"),
    "cluster": (["--vary", "OptimConfig.b1=[0.8]", "--on", "slurmm"], "did you mean 'slurm'"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_a_mistake_is_one_clear_line_and_nothing_is_run(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_nothing(*args: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(runner, "run_jobs", run_nothing)
    words, expected = BAD_INPUT[name]
    assert expected in refused(["ablate", "base.gin", *words], capfd)
    assert not Path("research").exists()
