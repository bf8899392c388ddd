# SPDX-License-Identifier: Apache-2.0
"""Tables of rows: which names are chosen, ratios, what a search keeps."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxlm.bench import kernel_tuning, kernels
from jaxlm.bench.kernel_list import KERNELS
from jaxlm.bench.kernel_tables import keep_row, read_rows
from jaxlm.bench.kernel_tuning import keep_ours, search_table, winner
from jaxlm.bench.kernels import Row, as_json, combinations, measure, ratio, selected, table
from jaxlm.core.errors import ConfigError
from pallas_kernels.tuning import table as tuning
from pallas_kernels.tuning.attention import forward_blocks

COST = {
    "cycles": 1000,
    "mxu_frac": 0.5,
    "bound_by": "MXU",
    "bound_frac": 0.5,
    "spills": 3,
    "hbm_bytes": 2e6,
    "bundles": 70,
    "note": "",
}


def row(kernel: str, ms: float | None, **blocks: int) -> Row:
    cost = None if ms is None else COST | {"predicted_ms": ms}
    reason = "no window" if ms is None else ""
    return Row("causal_4k", kernel, "v6e", cost, reason, blocks or None)


def test_a_time_is_compared_with_the_best_public_one_of_its_direction() -> None:
    rows = [
        row("attention/forward/ours", 1.0),
        row("attention/forward/flash", None),
        row("attention/forward/splash", 4.0),
        row("attention/forward/tokamax", 2.0),
        row("attention/backward/splash", 0.1),
    ]
    assert [ratio(r, rows) for r in rows] == [0.5, None, 2.0, 1.0, 1.0]
    lines = list(table(rows))
    assert lines[2].endswith("no window")
    assert "0.500" in lines[1]
    found = json.loads(as_json(rows, "jaxlm bench kernels"))
    assert found["predicted"][0]["cost"]["cycles"] == 1000
    assert found["predicted"][1]["reason"] == "no window"


def test_kernels_are_chosen_by_name_or_by_the_beginning_of_a_path() -> None:
    names = list(KERNELS)
    assert selected(names, ["grouped_matmul/dw/ours"], "kernels") == ["grouped_matmul/dw/ours"]
    assert len(selected(names, ["attention"], "kernels")) == 10
    with pytest.raises(ConfigError, match="--kernels: unknown 'attend'"):
        selected(names, ["attend"], "kernels")
    todo = combinations(["causal_4k", "llama3_8b"], ["v6e"], names)
    assert {shape for kernel, shape, _ in todo if kernel.startswith("cross")} == {"llama3_8b"}


def test_what_stands_stays_unless_another_is_a_percent_faster() -> None:
    ours = "attention/forward/ours"
    group = [row(ours, 1.0, keys=512), row(ours, 0.995, keys=1024), row(ours, None, keys=2048)]
    assert winner(group) is group[0]
    group.append(row(ours, 0.98, keys=256))
    assert winner(group) is group[3]
    marked = [line for line in search_table(group) if " * " in line]
    assert len(marked) == 1 and "keys=256" in marked[0]


def test_a_row_takes_the_place_of_its_like(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for score in (2.0, 1.0):
        keep_row(path, {"kernel": "b", "chip": "v6e", "score": score}, ("kernel", "chip"))
        keep_row(path, {"kernel": "a", "chip": "v6e", "score": 0}, ("kernel", "chip"))
    assert [(r["kernel"], r["score"]) for r in read_rows(path)] == [("a", 0), ("b", 1.0)]


@pytest.mark.parametrize("shape", ["causal_4k", "window_8k", "documents_8k"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_what_a_search_keeps_is_what_the_kernel_then_takes(
    direction: str, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = KERNELS[f"attention/{direction}/ours"]
    stands, *_, better = kernel.tried(shape, "v5p")
    scores = [(1.0, stands), (0.5, better)]
    found = [Row(shape, kernel.id, "v5p", COST | {"predicted_ms": ms}, "", b) for ms, b in scores]
    for module in (tuning, kernel_tuning):
        monkeypatch.setattr(module, "PATH", tmp_path / "blocks.json")
    keep_ours(found)
    tuning._rows.cache_clear()
    try:
        assert kernel.standing(shape, "v5p") == better != stands
        assert kernel.standing(shape, "v6e") != better
    finally:
        monkeypatch.undo()
        tuning._rows.cache_clear()
    assert kernel.standing(shape, "v5p") == stands


def test_a_row_of_the_table_decides_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "blocks.json"
    named: dict[str, Any] = {"operation": "attention_forward", "chip": "v6e", "dtype": "bfloat16"}
    keep_row(path, named | {"shape_class": "causal", "blocks": {"queries": 1024}}, tuning.KEYS)
    monkeypatch.setattr(tuning, "PATH", path)
    tuning._rows.cache_clear()
    try:
        sizes = forward_blocks("v6e", 4096, 4096, 128, 128, 2, True, None)
        others = forward_blocks("v5p", 4096, 4096, 128, 128, 2, True, None)
    finally:
        tuning._rows.cache_clear()
    assert (sizes.queries, others.queries) == (1024, 2048)


def test_a_score_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled: list[Any] = []

    def compile_(*at: Any) -> dict[str, Any]:
        compiled.append(at)
        return {"cost": COST | {"predicted_ms": len(compiled)}}

    monkeypatch.setattr(kernels, "_compile", compile_)
    at = ("attention/backward/ours", "causal_4k", "v6e")
    first, again = measure(*at), measure(*at)
    other = measure(*at, {"block_kv": 512, "tile_q": 512})
    assert first == again and len(compiled) == 2
    assert other.predicted_ms == 2
