# SPDX-License-Identifier: Apache-2.0
"""Activations by arithmetic against what JAX stores; a compiled plan against the compiler."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxlm.cli.gin_edge import load
from jaxlm.loss import batch_loss
from jaxlm.model.config import ModelConfig, RematPolicy
from jaxlm.model.residuals import saved_bytes
from jaxlm.model.transformer import Model
from jaxlm.plan.analytic import estimate, stored_per_token
from jaxlm.plan.answer import make_plan
from jaxlm.plan.topology import parse_topology
from jaxlm.sharding.config import AXES, MeshConfig
from jaxlm.sharding.rules import rules_of

CONFIG = ModelConfig(
    vocab_size=256, num_layers=8, embed_dim=256, num_heads=4, num_kv_heads=2, ffn_dim=768,
    tied_embeddings=False, attention_impl="pallas", compute_dtype="bfloat16",
)  # fmt: skip
TPU = AbstractDevice(device_kind="TPU v6 lite", num_cores=1, platform="tpu")
CONFIGS = Path(__file__).parents[3] / "configs"


def stored(config: ModelConfig) -> int:
    """What JAX stores between the passes of 8 rows of 256 tokens on one TPU."""
    model, ints = Model(config), jax.ShapeDtypeStruct((8, 256), np.int32)
    batch = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), ints)
    batch["weights"] = jax.ShapeDtypeStruct(ints.shape, np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    mesh = AbstractMesh((1,) * len(AXES), AXES, (AxisType.Auto,) * len(AXES), abstract_device=TPU)
    loss = lambda params, batch: batch_loss(model, params, batch).loss
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(rules_of(MeshConfig())):
        return saved_bytes(loss, params, batch)


@pytest.mark.parametrize("remat", ["full", "attention", "products", "products_but_up", "dots"])
def test_stored_activations_are_what_differentiating_stores(remat: RematPolicy) -> None:
    """Per layer and token: what two more layers store more."""
    more = [
        stored(dataclasses.replace(CONFIG, remat=remat, num_layers=layers)) for layers in (4, 2)
    ]
    counted = 2 * 2 * 8 * 256 * stored_per_token(dataclasses.replace(CONFIG, remat=remat))
    assert counted == pytest.approx(more[0] - more[1], rel=0.02)


def test_experts_that_devices_share_need_room_for_all_rows() -> None:
    """Mixtral, all kept, 8 devices to a group: the compiler is out of memory at 1.50 TiB."""
    sets = ["MeshConfig.fsdp=16", "MeshConfig.expert=8", 'ModelConfig.remat="none"']
    config = load([str(CONFIGS / "mixtral_8x7b.gin")], sets)
    found = estimate(config, parse_topology("v5p:4x4x8"))
    assert found.memory.total == pytest.approx(1.5 * 2**40, rel=0.5)
    assert not found.fits


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_plan_agrees_with_the_compiler_and_with_a_hand_count() -> None:
    """Memory to 1 % of the compiler's; FLOPs to 1 % of products and kernels counted by hand."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'jaxlm[tpu]'")
    small = [
        "DataConfig.batch_size=16",
        "TrainConfig.num_micro_batches=1",
        "ModelConfig.num_layers=2",
    ]
    small += ['OptimConfig.name="adamw"', 'ModelConfig.remat="products"']
    config = load([str(CONFIGS / "dense_110m.gin")], small)
    plan = make_plan("small", config, parse_topology("v6e:2x2"), lambda *_: None)
    assert plan.facts is not None
    assert plan.reading is not None
    sizes = plan.facts["memory"]
    total = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    assert plan.memory.total == pytest.approx(total, rel=0.01)
    tokens, wide, inner, vocab, T = 4 * 1024, 768, 3072, 32768, 1024
    layers = 2 * 3 * 2 * tokens * (4 * wide**2 + 2 * wide * inner)
    assert plan.reading.product_flops == pytest.approx(layers, rel=0.01)
    attention = 2 * 2 * tokens * (T + 1) / 2 * wide * (2 + 5)
    kernels = attention + 3 * 2 * tokens * wide * vocab
    assert plan.reading.flops - plan.reading.product_flops == pytest.approx(kernels, rel=0.01)
    assert plan.reading.unknown_loops == ()
