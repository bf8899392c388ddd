# SPDX-License-Identifier: Apache-2.0
"""The idea bank's script: its table, and the check that a share of it comes out again."""

import csv
import json
from pathlib import Path

import pytest

from scripts import idea_bank
from tests.jaxlm.research.fake import FakeWorkers

TINY = [
    "ModelConfig.vocab_size=320", "TokenizerConfig.vocab_size=320",
    "DataConfig.corpora=[@CorpusConfig()]", 'CorpusConfig.name="text"', 'CorpusConfig.source="text"',
    "DataConfig.valid_frac=0.2",
]  # fmt: skip


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from tests.e2e.workshop import furnish

    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    FakeWorkers({("b1", 0.8): -0.1}).install(monkeypatch)
    assert run("bank", "table.csv", "--seeds", "3", "--scale", "0", "--only", "b1 0.8") == 0
    return tmp_path / "table.csv"


def run(*words: str) -> int:
    settings = [word for text in TINY for word in ("--set", text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["idea_bank.py", *words, *settings])
        return idea_bank.main()


def test_the_table_has_a_row_for_every_validation_and_says_what_made_it(table: Path) -> None:
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 2 * 3 * 10
    assert {row["idea"] for row in rows} == {"baseline", "b1 0.8"}
    facts = json.loads(table.with_suffix(".json").read_text())
    assert facts["command"].startswith("python idea_bank.py") and "jax" in facts["versions"]


def test_a_share_of_the_table_comes_out_again_and_a_changed_number_shows(
    table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("bank", "table.csv", "--check", "0.5") == 0
    assert "3 of 3 runs as in table.csv, 3 of its 6 drawn" in capfd.readouterr().out
    lines = table.read_text().splitlines()
    row, _, loss = lines[-1].rpartition(",")
    table.write_text("\n".join([*lines[:-1], f"{row},{float(loss) + 1e-12!r}"]) + "\n")
    assert run("bank", "table.csv", "--check", "1") == 1
    assert "DIFFERS, by up to" in capfd.readouterr().out


def test_every_idea_is_a_config_of_its_own_at_both_scales() -> None:
    for scale in range(len(idea_bank.SCALES)):
        found = idea_bank.settings(scale)
        assert len({setting.config.config_id for setting in found}) == len(idea_bank.IDEAS) + 1
