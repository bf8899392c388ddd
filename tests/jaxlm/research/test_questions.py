# SPDX-License-Identifier: Apache-2.0
"""Questions with a slip in them: refused in one line, which names the option, before anything is trained."""

from pathlib import Path

import pytest

from jaxlm.cli.main import main
from jaxlm.research import runner
from jaxlm.research.ledger import Ledger
from tests.e2e.workshop import furnish, refused
from tests.jaxlm.research.fake import FakeWorkers

LR = "OptimConfig.peak_lr"
ONE = ["--vary", f"{LR}=[2e-2]"]
NAMES = ["", "baseline", "baseline, 2 updates", "a + b", "two\nlines", "a\x1b[31mred", "\udcff"]

SLIPS = {
    "field given twice": (
        ["--vary", f"{LR}=[6e-3]", "--vary", f"{LR}=[4e-3]"],
        f"--vary {LR} is given twice; put all its values into one list: {LR}=[6e-3,4e-3]",
    ),
    "field set twice": (["--idea", f"x: {LR}=6e-3; {LR}=4e-3"], f"sets {LR} twice"),
    "value missing": (["--vary", f"{LR}=[1e-3,,2e-3]"], "a value is missing between two commas"),
    "value missing at the end": (["--vary", f"{LR}=[1e-3,]"], "a value is missing"),
    "fields of one name": (
        ["--vary", "TrainConfig.seed=[1]", "--vary", "DataConfig.seed=[1]", "--policy", "--budget", "40runs"],
        "--vary names seed=1 twice",
    ),
    "no policy": ([*ONE, "--policy", ""], "policy '' is not known; known: adaptive, asha,"),
    "value of another type": (["--vary", f'{LR}=["a"]'], f'--vary {LR} = "a": {LR} must be'),
    "no field": (
        ["--idea", "x: OptimConfig.b1=0.8; peak_lr=2e-2"],
        f"--idea peak_lr = 2e-2: nothing reads a macro %peak_lr; did you mean {LR}?",
    ),
    "no macro": ([*ONE, "--set", "width = 3"], "--set width = 3: nothing reads a macro %width; write"),
    "no such field": (["--idea", "x: OptimConfig.lr=1"], "--idea OptimConfig.lr = 1: unknown key"),
    "no such field, larger": (
        [*ONE, "--promote", "OptimConfig.lr=1"], "--promote OptimConfig.lr=1: unknown key",
    ),
    "infinite interval": ([*ONE, "--predict", "0,-inf,inf"], "LOW <= EFFECT <= HIGH"),
    "infinite effect": ([*ONE, "--predict", "1e999,0,1e999"], "LOW <= EFFECT <= HIGH"),
    "no effect": ([*ONE, "--predict", "nan,0,1"], "LOW <= EFFECT <= HIGH"),
    "turned round": ([*ONE, "--predict", "0,1,-1"], "LOW <= EFFECT <= HIGH"),
    "endless seeds": ([*ONE, "--seeds", "9" * 5000], "got a number of 5000 digits"),
    "many seeds at most": (
        [*ONE, "--max-seeds", "20000000"], "--max-seeds must be at most 10000, got 20000000",
    ),
    "many fresh seeds": (
        [*ONE, "--confirm", "1000000000"], "--confirm must be at most 10000, got 1000000000",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_one_line_that_names_its_option(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "run_jobs", lambda *_: pytest.fail("a worker was started"))
    words, expected = SLIPS[name]
    assert expected in refused(["ablate", "base.gin", *words], capfd)
    assert not Path("research").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_would_mean_something_else_is_refused(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refused(["ablate", "base.gin", "--idea", f"{name}: {LR}=2e-2"], capfd)
    assert "an arm cannot be named" in said and "allowed are printable characters" in said
    said = refused(["ablate", "base.gin", "--vary", f'OptimConfig.name=["{name} + {name}"]'], capfd)
    assert said.startswith("jaxlm: error: --vary: an arm cannot be named")


def test_an_empty_ledger_has_no_record_to_show(capfd: pytest.CaptureFixture[str]) -> None:
    Path("research").mkdir()
    Path("research/ledger.jsonl").touch()
    said = refused(["research", "show", "0"], capfd)
    assert said.endswith("no record 0; research/ledger.jsonl has none yet\n")


def test_an_effect_that_no_number_of_seeds_shows_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeWorkers({}).install(monkeypatch)
    words = ["ablate", "base.gin", "--set", "TrainConfig.num_steps=60", *ONE, "--seeds", "auto"]
    for effect in ("1e-200", "5e-324", "1e-20"):
        assert "seeds or more (at most 16)" in refused([*words, "--smallest-effect", effect], capfd)
    Path("research/runs").rename("elsewhere")
    assert "is empty or gone, and the ledger tells of its run" in refused(words[:-2], capfd)
    Path("elsewhere").rename("research/runs")
    assert main(words[:-2]) == 0
    assert [r.kind for r in Ledger(Path("research/ledger.jsonl"))].count("review") == 1
