# SPDX-License-Identifier: Apache-2.0
"""Damaged tables are refused in one line, damaged scores computed again; what is kept is what is taken."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxlm.bench import kernel_tables, kernels
from jaxlm.bench.kernel_list import KERNELS
from jaxlm.bench.kernel_tables import keep_row, read_rows
from jaxlm.bench.kernels import measure
from jaxlm.cli.main import main
from jaxlm.core.errors import ConfigError
from pallas_kernels.tuning import table

CHIPS = ("v5e", "v5p", "v6e", "tpu7x")
OURS = "cross_entropy/both/ours"
ROW = '[{"operation": "cross_entropy", "chip": "v6e", "shape_class": "8 x 4", "dtype": "f", "blocks": %s}]'


@pytest.fixture
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The table of our block sizes, in a file of the test's own."""
    monkeypatch.setattr(table, "PATH", tmp_path / "blocks.json")
    table._rows.cache_clear()
    yield tmp_path / "blocks.json"
    table._rows.cache_clear()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[{"operation": "cro', "Unterminated string"),
        ("", "Expecting value"),
        ("{}", "no list of rows"),
        ("[3]", "no list of rows"),
        ('[{"operation": "cross_entropy"}]', "row 1 has no 'chip'"),
        (ROW % '{"rows": 512, "width": 3}', "row 1 has a size 'width'; allowed: rows, block_v"),
        (ROW % '{"rows": "512"}', "row 1 has '512' for rows; allowed: whole numbers"),
        (ROW % "7", "row 1 has no 'blocks'"),
    ],
)
def test_a_damaged_table_is_named(
    blocks: Path, capsys: pytest.CaptureFixture[str], text: str, what: str
) -> None:
    blocks.write_text(text)
    with pytest.raises(ValueError, match="blocks.json is damaged: ") as error:
        table.tuned("cross_entropy", "v6e", "8 x 4", "f")
    assert what in str(error.value)
    assert main(["bench", "kernels", "--kernels", OURS, "--shapes", "llama2_7b"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("jaxlm: error: ") and "blocks.json is damaged" in said and what in said


@pytest.mark.parametrize("text", ["[", "", "{}", "3"])
def test_no_row_is_kept_in_a_damaged_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="rows.json is damaged"):
        keep_row(path, {"kernel": "a"}, ("kernel",))
    assert path.read_text() == text


def test_a_table_is_whole_whenever_the_search_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    keep_row(path, {"kernel": "a"}, ("kernel",))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        keep_row(path, {"kernel": "b"}, ("kernel",))
    assert read_rows(path) == [{"kernel": "a"}] and os.listdir(tmp_path) == ["rows.json"]


@pytest.mark.parametrize("text", ['{"cost": {"pred', "", "[]", "{}", '{"cost": 3}', "\xff"])
def test_a_damaged_score_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_compile", lambda *_: {"reason": "no room"})
    measure(OURS, "llama2_7b", "v6e")
    (path,) = (tmp_path / "jaxlm" / "kernel_costs").iterdir()
    path.write_text(text, encoding="latin-1")
    assert measure(OURS, "llama2_7b", "v6e").reason == "no room"
    assert path.read_text() == '{"reason": "no room"}'


def test_a_cache_that_cannot_be_is_found_before_the_compiler_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    compiled: list[Any] = []
    monkeypatch.setattr(kernels, "_compile", lambda *at: compiled.append(at))
    with pytest.raises(NotADirectoryError):
        measure(OURS, "llama2_7b", "v6e")
    assert not compiled


@pytest.mark.parametrize("kernel", [k for k in KERNELS.values() if k.is_ours], ids=lambda k: k.id)
def test_every_candidate_is_read_back_as_it_was_tried(
    kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, shape in kernel.shapes.items():
        if (row := kernel.row(shape)) is None:
            continue
        operation, shape_class, sizes = row
        for chip, tried in [(at, some) for at in CHIPS for some in kernel.tried(name, at)]:
            key = operation, chip, shape_class, "bfloat16"
            with monkeypatch.context() as patch:
                found = {key: {size: tried[size] for size in sizes}}
                patch.setattr(table, "_rows", lambda found=found: found)
                assert kernel.standing(name, chip) == tried


def test_the_tables_are_those_that_the_kernels_read() -> None:
    assert read_rows(kernel_tables.PUBLIC) and table._rows()
