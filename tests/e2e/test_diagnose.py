# SPDX-License-Identifier: Apache-2.0
"""`jaxlm diagnose` on runs that `jaxlm train` made: a healthy one, and one with a mistake in it."""

import json
from pathlib import Path

import pytest

from jaxlm.cli.main import main
from tests.e2e.runs import Job
from tests.e2e.workshop import furnish


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two finished runs of 40 updates."""
    folder = tmp_path_factory.mktemp("diagnose")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        furnish(folder)
        common = [
            "TrainConfig.num_steps=40",
            "TrainConfig.probe_every=5",
            "TrainConfig.eval_every=10",
        ]
        settings = {"good": ["OptimConfig.warmup_steps=5"], "hot": [
            "OptimConfig.warmup_steps=10", "OptimConfig.peak_lr=3.0", "OptimConfig.schedule='constant'",
        ]}  # fmt: skip
        for name, own in settings.items():
            job = Job(Path("base.gin"), Path("runs") / name, overrides=(*common, *own))
            assert job.run()[0] in (0, 3)
    return folder / "runs"


def findings(runs, name, capsys, *more):
    capsys.readouterr()
    assert main(["diagnose", str(runs / name), "--json", *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["citations_that_do_not_hold"] == []
    return found["findings"]


def test_a_sound_run_is_healthy(runs, capsys):
    stable = [f for f in findings(runs, "good", capsys) if f["cause"] not in MACHINE]
    assert stable == []


MACHINE = {"throughput_fall", "straggler", "data_starvation"}  # a busy machine may well have these


def test_too_high_a_learning_rate_is_named_first(runs, capsys):
    found = findings(runs, "hot", capsys, "--against", str(runs / "good"))
    first = next(f for f in found if f["cause"] not in MACHINE)
    assert first["cause"] == "lr_too_high"
    assert float(first["next_test"]["changes"]["OptimConfig.peak_lr"]) < 3.0


def test_the_page_shows_evidence_and_a_picture(runs, capsys):
    assert main(["diagnose", str(runs / "hot")]) == 0
    out = capsys.readouterr().out
    assert "lr_too_high" in out and "median of update/ratio_rms = " in out
    assert "--set OptimConfig.peak_lr=0.75" in out
    assert any(0x2800 < ord(c) < 0x2900 for c in out)  # braille dots
