# SPDX-License-Identifier: Apache-2.0
"""The train step of a shipped config, compiled for TPUs that are not there: what is in it."""

import math
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CONFIG = Path(__file__).parents[3] / "configs" / "dense_110m.gin"
TOPOLOGY = "v6e:2x2"


@pytest.fixture(scope="module")
def program() -> tuple[str, dict[str, int]]:
    """The optimised program, and the sizes that its buffers are to be compared with."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'jaxlm[tpu]'")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    from jaxlm.cli.gin_edge import load
    from jaxlm.sharding.mesh import make_mesh
    from jaxlm.sharding.rules import ROWS
    from jaxlm.train.setup import build_trainer, on_mesh

    config = load([str(CONFIG)], [])
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    mesh = make_mesh(config.mesh, list(devices))
    trainer = build_trainer(config, np.ones(config.model.vocab_size, np.int32), mesh)
    B, T = config.data.batch_size, config.data.seq_len
    sharding = jax.NamedSharding(mesh, ROWS)
    names = ("tokens", "targets", "positions", "segment_ids", "weights")
    batch = {
        name: jax.ShapeDtypeStruct(
            (B, T), np.float32 if name == "weights" else np.int32, sharding=sharding
        )
        for name in names
    }
    step: Any = trainer.step  # jitted
    with on_mesh(mesh):
        text = step.lower(trainer.abstract_state, batch).compile().as_text()
    tokens = B * T // len(devices) // config.train.num_micro_batches
    return text, {"T": T, "V": config.model.vocab_size, "tokens": tokens}


@pytest.mark.parametrize(
    "kernel", ["attention_forward", "attention_backward", "linear_cross_entropy"]
)
def test_our_kernels_are_in_it_by_name(kernel: str, program: tuple[str, dict[str, int]]) -> None:
    calls = [line for line in program[0].splitlines() if "tpu_custom_call" in line]
    assert any(kernel in line for line in calls)


def test_nothing_of_positions_by_positions_or_tokens_by_vocabulary_is_stored(
    program: tuple[str, dict[str, int]],
) -> None:
    text, sizes = program
    shapes = {
        tuple(int(n) for n in found.split(",")) for found in re.findall(r"\w+\[([\d,]+)\]", text)
    }
    T, V, tokens = sizes["T"], sizes["V"], sizes["tokens"]
    assert any(T in shape for shape in shapes)
    assert any(V in shape for shape in shapes)
    assert not [shape for shape in shapes if shape.count(T) > 1]
    assert not [s for s in shapes if V in s and math.prod(s) // V >= tokens]
