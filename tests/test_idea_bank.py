# SPDX-License-Identifier: Apache-2.0
"""The idea bank's script: its table, how it goes on after a kill, and the check of a share of it."""

import csv
import json
from pathlib import Path
from typing import ClassVar

import pytest

from jaxlm.config import RunConfig
from jaxlm.research import lean_runs
from jaxlm.research.jobs import program_id
from jaxlm.research.lean_runs import Curve, Program
from scripts import idea_bank

TINY = [
    "ModelConfig.vocab_size=320", "TokenizerConfig.vocab_size=320",
    "DataConfig.corpora=[@CorpusConfig()]", 'CorpusConfig.name="text"', 'CorpusConfig.source="text"',
    "DataConfig.valid_frac=0.2",
]  # fmt: skip
WORDS = ("table.csv", "--seeds", "3", "--scale", "0", "--only", "b1 0.8", "--only", "lion")


class FakeProgram:
    """Losses that depend on the whole config, without training."""

    trained: ClassVar[list[str]] = []

    def __init__(self, config: RunConfig) -> None:
        self.id = program_id(config)

    def run(self, config: RunConfig) -> Curve:
        assert program_id(config) == self.id
        self.trained.append(config.config_id)
        own = int(config.config_id[:12], 16) / 7e14
        return [(part / 10, own + 1 / part) for part in range(1, 11)]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from tests.e2e.workshop import furnish

    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(idea_bank, "Program", FakeProgram)
    monkeypatch.setattr(FakeProgram, "trained", [])
    assert run(*WORDS) == 0
    return tmp_path / "table.csv"


def run(*words: str) -> int:
    settings = [word for text in TINY for word in ("--set", text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["idea_bank.py", *words, *settings])
        return idea_bank.main()


def test_the_table_has_a_row_for_every_validation_and_says_what_made_it(table: Path) -> None:
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 3 * 3 * 10
    assert {row["idea"] for row in rows} == {"baseline", "b1 0.8", "lion"}
    facts = json.loads(table.with_suffix(".json").read_text())
    assert facts["command"].startswith("python idea_bank.py") and "jax" in facts["versions"]
    assert facts["code"] == lean_runs.code() and facts["machine"]["cpu"]
    idea = facts["ideas"]["b1 0.8, scale 0"]
    assert idea["changes"] == {"OptimConfig.b1": "0.8"} and idea["tokens"] == 240 * 8 * 32


def test_after_a_kill_anywhere_it_trains_what_is_missing_and_nothing_else(table: Path) -> None:
    whole = table.read_text()
    for cut in (0, 1, 7, 900, 1500):
        table.write_text(whole[: len(whole) - cut])
        missing = 9 - len(idea_bank.read_runs(table))
        assert missing == 0 if cut == 0 else 0 < missing < 9
        FakeProgram.trained.clear()
        assert run(*WORDS) == 0
        assert len(FakeProgram.trained) == missing
        assert table.read_text() == whole


def test_a_table_of_other_code_is_refused_in_one_line_and_left_alone(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = table.read_text(), table.with_suffix(".json").read_text()
    monkeypatch.setattr(lean_runs, "code", lambda: "other")
    assert run(*WORDS) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "begun with other code" in said
    assert (table.read_text(), table.with_suffix(".json").read_text()) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["no/x.csv"], "no/x.csv cannot be written: there is no folder no; make it first"),
        (["table.csv", "--check", "2"], "--check must be above 0, at most 1, got 2.0"),
        (["table.csv", "--check", "nan"], "--check must be above 0, at most 1, got nan"),
        (["table.csv", "--check", "0"], "--check must be above 0, at most 1, got 0.0"),
        (["table.csv", "--seeds", "-1"], "--seeds must be >= 1, got -1"),
        (["none.csv", "--check", "1"], "none.csv holds no run to check"),
        (["table.csv", "--only", "x"], "--only 'x' is no idea; known:"),
    ],
)
def test_a_mistake_is_one_line(
    table: Path, words: list[str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(table.parent.rglob("*"))
    assert run(*words) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and expected in said
    assert sorted(table.parent.rglob("*")) == before


def test_changed_code_goes_on_with_a_table_once_a_check_has_come_out(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean_runs, "code", lambda: "other")
    whole = table.read_text()
    table.write_text(whole[:-3] + ("1" if whole[-3] != "1" else "2") + whole[-2:])
    assert run("table.csv", "--check", "1", "--adopt") == 1 and run(*WORDS) == 2
    table.write_text(whole)
    assert run("table.csv", "--check", "1", "--adopt") == 0 and run(*WORDS) == 0
    facts = json.loads(table.with_suffix(".json").read_text())
    assert facts["code"] == "other" and len(facts["earlier"]) == 1
    assert sorted(facts["ideas"]) == ["b1 0.8, scale 0", "baseline, scale 0", "lion, scale 0"]


def test_a_run_that_did_not_complete_has_no_loss_and_stays_done(table: Path) -> None:
    key, curve = ("lion", 0, 9), [(0.5, 3.0), (1.0, float("nan"))]
    with table.open("a") as f:
        f.write(idea_bank.as_text([(key, curve)]))
    assert table.read_text().endswith("lion,0,9,1.0,\n")
    assert repr(idea_bank.read_runs(table)[key]) == repr(curve)


def test_a_share_of_the_table_comes_out_again_and_a_changed_number_shows(
    table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("table.csv", "--check", "0.3") == 0
    assert "3 of 3 runs as in table.csv, drawn of 9" in capfd.readouterr().out
    lines = table.read_text().splitlines()
    row, _, loss = lines[-1].rpartition(",")
    table.write_text("\n".join([*lines[:-1], f"{row},{float(loss) + 1e-12!r}"]) + "\n")
    assert run("table.csv", "--check", "1") == 1
    assert "DIFFERS, by up to" in capfd.readouterr().out


def test_every_idea_is_a_config_of_its_own_at_both_scales() -> None:
    for scale in range(len(idea_bank.SCALES)):
        found = idea_bank.settings(scale)
        assert len({setting.config.config_id for setting in found}) == len(found)
        assert idea_bank.IDEAS.keys() - {s.name for s in found} == {"linear"}  # the config's own


@pytest.mark.slow
def test_runs_of_one_program_depend_on_nothing_that_ran_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.e2e.workshop import furnish

    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    short = ["TrainConfig.num_steps=90", "TrainConfig.eval_every=30", "DataConfig.read_threads=1"]
    base, faster, *_ = (s.config for s in idea_bank.settings(0, [*TINY, *short]))
    program = Program(base)
    first, other, again = program.run(base), program.run(faster), program.run(base)
    assert first == again and first != other
    assert Program(faster).run(faster) == other
