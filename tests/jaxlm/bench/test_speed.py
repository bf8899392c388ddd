# SPDX-License-Identifier: Apache-2.0
"""`jaxlm bench loop` and `start` on a small run: they end soon, and measure what they say."""

import re

import pytest

from jaxlm.bench import loop
from jaxlm.bench.start import bench_start
from jaxlm.cli.bench import commit_line
from jaxlm.cli.gin_edge import load
from tests.e2e.runs import write_config


@pytest.mark.slow
def test_the_loop_is_timed_without_its_validation_and_compiles_nothing_late(tmp_path, monkeypatch):
    config, judged = load([str(write_config(tmp_path))], []), []
    evaluate = loop.Run.evaluate
    monkeypatch.setattr(
        loop.Run, "evaluate", lambda self, *args: judged.append(args[-1]) or evaluate(self, *args)
    )
    found = loop.bench_loop(config, 9)  # two turns
    assert found["compilations after the first update"] == "0"
    shares = re.findall(r"([\d.]+)%", found["loop / bare"])
    assert len(shares) == 3 and all(float(share) > 0 for share in shares)
    assert judged == [1]  # of its validation one batch, at the end


def test_a_figure_of_code_that_is_in_no_commit_says_so() -> None:
    assert commit_line({"commit": "abc", "dirty_sha256": None}) == "abc"
    assert commit_line({"commit": "abc", "dirty_sha256": "f00"}) == "abc, with changes"
    assert commit_line({"commit": None, "dirty_sha256": None}) == "not a git checkout"


@pytest.mark.slow
def test_the_start_is_that_of_a_run_with_and_without_compiled_programs(tmp_path):
    found = bench_start([str(write_config(tmp_path))], [])
    seconds = {name: float(re.search(r"[\d.]+", text)[0]) for name, text in found.items()}
    cold, warm = (seconds[f"first update, {x} compile cache"] for x in ("cold", "warm"))
    assert 0 < seconds["jaxlm --help"] < warm < cold
