# SPDX-License-Identifier: Apache-2.0
"""Updates of a model with experts: the same on every mesh and in parts, balanced, and resumable."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from jaxlm.train.setup import on_mesh
from tests.jaxlm.train.conftest import CONFIG

MODEL = dataclasses.replace(
    CONFIG.model,
    num_experts=8,
    expert_ffn_dim=16,
    num_shared_experts=1,
    num_dense_layers=1,
    router_score="sigmoid",
    router_bias_rate=0.01,
)
SPARSE = dataclasses.replace(CONFIG, model=MODEL)
MESHES = {
    "expert_fsdp": {"expert": 4, "fsdp": 2},
    "expert_model": {"expert": 4, "model": 2},
    "data_expert": {"data": 2, "expert": 4},
    "fsdp_model": {"fsdp": 4, "model": 2},
}


def updates(trainer, batches):
    """(metrics of every update, final state)."""
    rows = []
    with on_mesh(trainer.mesh):
        state = trainer.init(jax.random.key(0))
        for batch in batches:
            state, metrics = trainer.step(state, batch)
            rows.append(jax.device_get(metrics))
    return rows, jax.device_get(state)


def assert_same(found, expected, rtol):
    """Metrics to `rtol`; parameters to `rtol` of the largest entry, after Adam's division."""
    for got, want in zip(found[0], expected[0], strict=True):
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=rtol, atol=1e-7, err_msg=name)
    named = jax.tree_util.tree_leaves_with_path(expected[1].params)
    for (path, want), got in zip(named, jax.tree.leaves(found[1].params), strict=True):
        scale = np.max(np.abs(want)) + 1e-9
        np.testing.assert_allclose(
            got, want, atol=rtol * scale, rtol=0, err_msg=jax.tree_util.keystr(path)
        )


def layouts() -> list[Any]:
    quick = {("expert_fsdp", 2), ("expert_model", 1)}
    return [
        pytest.param(mesh, parts, marks=[] if (mesh, parts) in quick else [pytest.mark.slow])
        for mesh in MESHES
        for parts in (1, 2)
    ]


@pytest.mark.parametrize(("mesh", "num_micro_batches"), layouts())
def test_five_updates_agree_on_every_mesh(make_trainer, random_batch, mesh, num_micro_batches):
    train = dataclasses.replace(CONFIG.train, num_micro_batches=num_micro_batches)
    optim = dataclasses.replace(CONFIG.optim, eps=1e-3)  # no division by rounding errors
    config = dataclasses.replace(SPARSE, train=train, optim=optim)
    batches = [random_batch(i) for i in range(5)]
    want = updates(make_trainer(config), batches)
    assert_same(updates(make_trainer(config, **MESHES[mesh]), batches), want, rtol=1e-5)
    assert np.any(want[1].params["layers"]["block_0"]["moe"]["bias"] != 0)
