# SPDX-License-Identifier: Apache-2.0
"""`jaxlm bench kernels` does what is asked for, or says in one line why not."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxlm.bench import kernel_tuning, kernels
from jaxlm.bench.kernel_tables import read_rows
from jaxlm.cli.main import main
from pallas_kernels.tuning import table

ONE = ["--kernels", "cross_entropy/both/ours", "--shapes", "llama2_7b", "--chips", "v6e"]


@pytest.fixture(autouse=True)
def _without_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cost = dict.fromkeys(("cycles", "spills", "hbm_bytes", "bundles"), 1)
    cost |= {"mxu_frac": 0.5, "bound_by": "MXU", "bound_frac": 0.5, "note": "", "predicted_ms": 1.0}
    monkeypatch.setattr(kernels, "_compile", lambda *_: {"cost": cost})
    monkeypatch.setattr(kernel_tuning, "PATH", tmp_path / "blocks.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tune", "--sweep"], "--sweep does not go with --tune; leave one of them out"),
        (["--most", "3"], "--most is of --tune and --sweep; add one of them"),
        (["--gpu", "--shapes", "causal_4k"], "--shapes does not go with --gpu; leave one of"),
        (["--gpu", "--json", "x.json"], "--json does not go with --gpu"),
        (["--gpu", "--tune"], "--tune does not go with --gpu"),
        (["--kernels", "attention", "--shapes", "llama3_8b"], "no kernel of attention takes"),
        (["--shapes", "causal_4q"], "--shapes: unknown 'causal_4q'; did you mean 'causal_4k'?"),
        (["--chips", "v7"], "--chips: unknown 'v7'; "),
        (["--kernels", "attentions"], "--kernels: unknown 'attentions'; did you mean 'attention'?"),
        (["--tune", "--kernels", "attention/forward/ours_bounded"], "--tune finds nothing to keep"),
        (["--tune", "--kernels", "attention/forward/splash"], "--tune finds nothing to keep"),
        (["--sweep", "--kernels", "attention/forward/ours"], "--sweep finds nothing to keep"),
    ],
)
def test_what_cannot_be_done_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["bench", "kernels", *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("words", [["--tune"], ["--sweep"], ["--gpu"], ["--most", "3"]])
def test_options_of_kernels_are_of_no_other_bench(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["bench", "step", "configs/debug.gin", *words]) == 2
    assert f"{words[0]} is of bench kernels, not of step" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--tune", "--most", "2"]])
def test_all_figures_are_written(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "found.json"
    assert main(["bench", "kernels", *ONE, *words, "--json", str(path)]) == 0
    found: list[dict[str, Any]] = json.loads(path.read_text())["predicted"]
    assert [row["kernel"] for row in found] == [ONE[1]] * (2 if words else 1)
    kept = [row["shape_class"] for row in read_rows(kernel_tuning.PATH)]
    assert kept == (["32000 x 4096"] if words else [])
    assert table.PATH != kernel_tuning.PATH


def test_kernels_that_a_search_passes_over_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    others = "cross_entropy/both/ours,cross_entropy/both/ours_f32_table"
    assert main(["bench", "kernels", *ONE, "--kernels", others, "--tune", "--most", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "not searched, as no row would be kept: cross_entropy/both/ours_f32_table"
    )
