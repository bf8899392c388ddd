# SPDX-License-Identifier: Apache-2.0
"""The bench of runs in turn against runs together."""

from pathlib import Path

import pytest

from jaxlm.bench.members import bench_members
from jaxlm.cli.gin_edge import load
from jaxlm.core.errors import ConfigError

ROOT = Path(__file__).parents[3]
SMALL = ["ModelConfig.num_layers = 1", "DataConfig.seq_len = 16", "DataConfig.batch_size = 8"]


@pytest.mark.slow
def test_both_ways_are_measured_and_compared() -> None:
    config = load([str(ROOT / "configs/debug.gin")], SMALL)
    table = bench_members(config, 3)
    for how in ("in turn", "together"):
        assert float(table[f"{how}: an update of one member"].split()[0]) > 0
        assert float(table[f"{how}: compilation, once"].split()[0]) > 0
    assert table["together against in turn"].endswith("x the updates per second")


def test_too_few_steps_are_refused() -> None:
    config = load([str(ROOT / "configs/debug.gin")], SMALL)
    with pytest.raises(ConfigError, match="--steps must be >= 3, got 2"):
        bench_members(config, 2)
