# SPDX-License-Identifier: Apache-2.0
"""A step of a model with experts, compiled for TPUs that are not there: what is in it."""

import math
import os
import re
from typing import Any

import jax
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TOPOLOGY = "v5p:2x2x1"
E, K, D, F, T, B = 8, 2, 512, 768, 1024, 8
HBM = 95 * 10**9  # bytes of a v5p chip
MESHES = {"fsdp": {"fsdp": -1}, "expert_fsdp": {"expert": 2, "fsdp": -1}}


@pytest.fixture(scope="module", params=MESHES.values(), ids=MESHES)
def program(request: Any) -> tuple[str, int, int]:
    """The optimised program, its bytes per device, and the devices along the expert axis."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'jaxlm[tpu]'")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    from jaxlm.model.config import ModelConfig
    from jaxlm.sharding.config import MeshConfig
    from jaxlm.sharding.mesh import make_mesh
    from jaxlm.sharding.rules import ROWS
    from jaxlm.train.setup import build_trainer, on_mesh

    sizes = {"vocab_size": 4096, "num_layers": 2, "embed_dim": D, "num_heads": 4, "ffn_dim": F}
    experts = {"num_experts": E, "experts_per_token": K, "router_bias_rate": 0.01}
    model = ModelConfig(**sizes, **experts, compute_dtype="bfloat16", remat="full")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    mesh = make_mesh(MeshConfig(data=1, **request.param), list(devices))
    trainer = build_trainer(run_config(model), np.ones(4096, np.int32), mesh)
    rows = jax.NamedSharding(mesh, ROWS)
    leaf = lambda dtype: jax.ShapeDtypeStruct((B, T), dtype, sharding=rows)
    batch = {n: leaf(np.int32) for n in ("tokens", "targets", "positions", "segment_ids")}
    step: Any = trainer.step
    with on_mesh(mesh):
        done = step.lower(trainer.abstract_state, batch | {"weights": leaf(np.float32)}).compile()
    memory = done.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return done.as_text(), used, request.param.get("expert", 1)


def run_config(model: Any) -> Any:
    from jaxlm.config import RunConfig
    from jaxlm.data.config import DataConfig, TokenizerConfig
    from jaxlm.optim.config import OptimConfig
    from jaxlm.train.config import TrainConfig

    tokenizer = TokenizerConfig(vocab_size=4096)
    data = DataConfig(tokenizer=tokenizer, seq_len=T, batch_size=B)
    # an update with probes has one more forward pass in a branch
    optim, train = OptimConfig(peak_lr=1e-3), TrainConfig(num_steps=10, probe_every=None)
    return RunConfig(model=model, data=data, optim=optim, train=train)


def test_experts_run_by_our_kernels(program: tuple[str, int, int]) -> None:
    calls = [line for line in program[0].splitlines() if "tpu_custom_call" in line]
    names = [name for line in calls for name in re.findall(r"grouped_matmul\w*", line)[-1:]]
    # of three matrices: forward, forward again (remat), and both gradients; where experts are not split,
    # the last one's result is not needed again
    assert names.count("grouped_matmul") == (9 if program[2] > 1 else 8)
    assert names.count("grouped_matmul_dw") == 3


def test_rows_travel_by_a_ragged_all_to_all_only_where_experts_are_split(
    program: tuple[str, int, int],
) -> None:
    text, _, parts = program
    found = len(re.findall(r" ragged-all-to-all\(", text))
    assert found == (6 if parts > 1 else 0)  # there and back: forward, again, and backward


def test_no_buffer_holds_tokens_times_experts_and_it_fits(program: tuple[str, int, int]) -> None:
    text, used, parts = program
    shapes = {
        tuple(int(n) for n in found.split(",")) for found in re.findall(r"\w+\[([\d,]+)\]", text)
    }
    rows = B * T // 4 * K * parts  # of all devices that may send to one
    widest = max(math.prod(shape) for shape in shapes if max(shape) >= B * T // 4)
    assert widest == rows * F  # and not E times that of one row for every token and expert
    assert used < HBM
