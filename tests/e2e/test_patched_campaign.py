# SPDX-License-Identifier: Apache-2.0
"""Code from a model, from its diff to its adoption: real commands, real runs, a person at a terminal."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.bench.attacks.honest import Honest
from jaxlm.research.desk.signing import KEY_VARIABLE
from jaxlm.research.ledger import Ledger
from jaxlm.research.records import PATCH
from jaxlm.research.sandbox import sandbox
from jaxlm.train.run_dir import read_json
from tests.e2e.workshop import ROOT
from tests.jaxlm.research.terminal import agreed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        sandbox.level() != "namespaces and landlock", reason="this machine lacks walls"
    ),
]
TITLE = "four times the rate"
# the learning rate is low, so that four times as much helps for certain; long enough for the pilot
LOW = ["--set", "OptimConfig.peak_lr=2e-3", "--set", "TrainConfig.num_steps=960"]
FASTER = Honest(
    TITLE, "jaxlm/optim/schedule.py", "return warm * (final + (1 - final) * left)",
    "return 4 * warm * (final + (1 - final) * left)",
)  # fmt: skip
LEDGER = Ledger(Path("research/ledger.jsonl"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "keys" / "approval.key"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-of-a-person")
    Path("change.diff").write_text(FASTER.diff().replace("0 <= share <= 1", "0 <= share <= 4"))


def said(*words: str) -> str:
    """Output of a `jaxlm research` command that must succeed."""
    command = [sys.executable, "-m", "jaxlm.cli.main", "research", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def agreed_to(*words: str) -> str:
    """All that a command asked at a terminal whose person agrees."""
    command = [sys.executable, "-m", "jaxlm.cli.main", "research", *words]
    code, asked = agreed(command, Path("log"))
    assert code == 0, Path("log").read_text()
    return asked


def test_a_campaign_with_an_arm_of_code_goes_from_its_diff_to_its_adoption() -> None:
    said("init", str(ROOT / "configs" / "nano.gin"), *LOW, "--max-flops", "1e13")
    said("patch", "change.diff", "--title", TITLE, "--effect=-0.2,-0.6,0.1")
    draft = re.findall(r"^[0-9a-f]{12}", said("draft", "--seeds", "3"), re.MULTILINE)[0]
    asked = agreed_to("approve", draft)
    assert asked.count("to agree") == 2 and "1 passed" in asked and "+    return 4 * warm" in asked
    told = said("run")
    assert "kept: " + TITLE in told
    agreed_to("adopt", draft, TITLE)
    assert "no problem" in said("verify")
    said("report")
    _check_runs()
    _check_adopted()
    left = [p for p in Path().rglob("*") if p.is_file() and p.stat().st_size < 10 << 20]
    assert not [p for p in left if b"sk-ant-secret" in p.read_bytes()]


def _check_runs() -> None:
    """Patched runs were trained behind both walls and judged outside, on seeds that differ by stage."""
    stages = {p["id"]: p for p in LEDGER.of_kind("protocol")}
    runs = [r for r in LEDGER.of_kind("run") if r["arm"] == TITLE]
    assert {stages[r["protocol"]]["stage"] for r in runs} == {"screen", "confirmation"}
    assert len({r["seed"] for r in runs}) == len(runs) == 6
    for run in runs:
        assert run["status"] == "completed"
        assert run["evaluation"]["walls"] == "namespaces and landlock"
        assert run["evaluation"]["asked_twice"] > 0
        env = read_json(Path("research") / run["directory"] / "env.json") or {}
        assert env["patch"] and env["processor_time"] < 1.5 * env["processor_time_of_clean_code"]


def _check_adopted() -> None:
    (adoption,) = LEDGER.of_kind("adoption")
    assert adoption["changes"].keys() == {PATCH}
    (file,) = Path("research/patches").iterdir()
    assert file.read_text() == Path("change.diff").read_text()
    report = Path("research/report.md").read_text()
    assert f"screen: {TITLE}: keep" in report and f"confirmation: {TITLE}: keep" in report
