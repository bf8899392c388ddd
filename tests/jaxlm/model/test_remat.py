# SPDX-License-Identifier: Apache-2.0
"""What each remat policy computes again on a TPU, counted in the traced program."""

import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxlm.loss import batch_loss
from jaxlm.model.config import ModelConfig, RematPolicy
from jaxlm.model.transformer import Model
from jaxlm.sharding.config import AXES, MeshConfig
from jaxlm.sharding.rules import rules_of

CONFIG = ModelConfig(
    vocab_size=256, num_layers=2, embed_dim=128, num_heads=2, ffn_dim=384, tied_embeddings=False,
    qk_norm=True, attention_impl="pallas", compute_dtype="bfloat16",
)  # fmt: skip
TPU = AbstractDevice(device_kind="TPU v6 lite", num_cores=1, platform="tpu")


@functools.cache
def gradient(remat: RematPolicy, **changes: Any) -> str:
    """The jaxpr of the loss's gradient, as for one TPU."""
    model = Model(dataclasses.replace(CONFIG, remat=remat, **changes))
    ints = jax.ShapeDtypeStruct((2, 256), np.int32)
    batch = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), ints)
    batch["weights"] = jax.ShapeDtypeStruct(ints.shape, np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    mesh = AbstractMesh((1,) * len(AXES), AXES, (AxisType.Auto,) * len(AXES), abstract_device=TPU)
    loss = lambda params, batch: batch_loss(model, params, batch).loss
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(rules_of(MeshConfig())):
        return str(jax.make_jaxpr(jax.grad(loss))(params, batch))


@pytest.mark.parametrize(
    ("remat", "runs"), [("none", 1), ("full", 2), ("attention", 1), ("products", 1)]
)
def test_the_attention_kernel_runs_again_only_where_its_results_are_not_kept(
    remat: RematPolicy, runs: int
) -> None:
    assert gradient(remat).count("name=attention_forward") == runs


@pytest.mark.parametrize(
    ("remat", "more"), [("products", 0), ("products_but_up", 1), ("attention", 5), ("full", 6)]
)
def test_products_computed_again(remat: RematPolicy, more: int) -> None:
    """Query, key, value, output, gate, up; no gradient needs the result of the last, down.

    The kernel keeps its value, and with QK-norm not what query and key were before their norm.
    """
    count = lambda remat: gradient(remat).count("dot_general[")
    assert count(remat) - count("none") == more


def test_an_expert_computes_gate_and_up_again_and_down_never() -> None:
    """Rows are weighted before the product down, so no gradient needs what it gives."""
    calls = lambda remat: re.findall(r"name=grouped_matmul\b", gradient(remat, num_experts=4))
    assert len(calls("full")) - len(calls("none")) == 2
