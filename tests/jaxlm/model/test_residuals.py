# SPDX-License-Identifier: Apache-2.0
"""Stored bytes follow the remat policy, to the byte where arithmetic can say what they are."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxlm.loss import batch_loss
from jaxlm.model.config import ModelConfig
from jaxlm.model.residuals import saved_bytes
from jaxlm.model.transformer import Model

BASE = ModelConfig(vocab_size=50, num_layers=4, embed_dim=24, num_heads=3, ffn_dim=40)
ROWS, T = 3, 20


def saved(**changes) -> int:
    model = Model(dataclasses.replace(BASE, **changes))
    params = jax.eval_shape(model.init, jax.random.key(0))
    ints = jax.ShapeDtypeStruct((ROWS, T), jnp.int32)
    batch = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), ints)
    batch["weights"] = jax.ShapeDtypeStruct((ROWS, T), jnp.float32)
    return saved_bytes(lambda p, b: batch_loss(model, p, b).nats, params, batch)


@pytest.mark.parametrize(("remat", "streams"), [("full", 1), ("block_inputs", 2)])
def test_a_layer_under_remat_stores_whole_streams_and_nothing_else(remat, streams):
    """One stream is what a layer reads; block_inputs keeps the one between attention and MLP too."""
    per_layer = (saved(remat=remat, num_layers=8) - saved(remat=remat, num_layers=4)) / 4
    assert per_layer == streams * ROWS * T * BASE.embed_dim * 4


def test_policies_are_ordered_and_bf16_halves_the_streams():
    sizes = [saved(remat=remat) for remat in ("full", "block_inputs", "dots", "none")]
    assert sizes == sorted(set(sizes))
    f32, bf16 = (
        saved(remat="full", num_layers=8, compute_dtype=d) - saved(remat="full", compute_dtype=d)
        for d in ("float32", "bfloat16")
    )
    assert f32 == 2 * bf16
