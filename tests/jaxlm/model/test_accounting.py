# SPDX-License-Identifier: Apache-2.0
"""Accounting adds up: parameters against the tree, FLOPs against what XLA compiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model.accounting import (
    forward_flops_per_token,
    mean_keys,
    num_active_params,
    num_params,
)
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Model

BASE = ModelConfig(vocab_size=97, num_layers=4, embed_dim=24, num_heads=6, ffn_dim=40)
VARIANTS = {
    "plain": {},
    "untied": {"tied_embeddings": False},
    "grouped": {"num_kv_heads": 2, "head_dim": 10},
    "multi_query_gelu": {"num_kv_heads": 1, "activation": "gelu"},
    "norms_sinks": {"qk_norm": True, "attention_sinks": True},
    "experts": {"num_experts": 5, "experts_per_token": 3, "expert_ffn_dim": 7},
    "shared_after_dense": {
        "num_experts": 4,
        "num_shared_experts": 2,
        "num_dense_layers": 1,
        "router_bias_rate": 0.1,
        "activation": "relu2",
    },
    "pattern": {"layer_pattern": ("local", "full"), "window": 3, "activation": "relu2"},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_groups_add_up_to_the_parameter_tree(changes):
    config = dataclasses.replace(BASE, **changes)
    tree = jax.eval_shape(Model(config).init, jax.random.key(0))
    assert sum(num_params(config).values()) == sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("window", [None, 1, 3, 7, 8, 50])
def test_mean_keys_counts_the_mask(window):
    T = 8
    q, k = np.arange(T)[:, None], np.arange(T)[None, :]
    mask = (k <= q) & (k > q - (window or T))
    assert mean_keys(T, window) == pytest.approx(mask.sum() / T)


def test_forward_flops_are_what_xla_counts_for_the_full_square_of_scores():
    """XLA counts every product of the reference attention, masked or not: 2x the causal half.

    One layer, because XLA counts a loop's body once.  Elementwise work is the slack: it is linear
    in the widths, the products are not, so wide layers leave it under 5 %.
    """
    T = 64
    config = dataclasses.replace(
        BASE, num_layers=1, embed_dim=256, num_heads=2, ffn_dim=512, attention_impl="reference"
    )
    model = Model(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    forward = lambda p, t: model.logits(p, model.apply(p, t))
    tokens = jax.ShapeDtypeStruct((2, T), jnp.int32)
    counted = jax.jit(forward).lower(params, tokens).compile().cost_analysis()["flops"] / (2 * T)
    flops = forward_flops_per_token(config, T)
    square = sum(flops.values()) + flops["scores and values"] * (T / mean_keys(T, None) - 1)
    assert square <= counted < 1.05 * square


def test_train_flops_of_a_hand_counted_model():
    """D 2, F 3, V 5, one head of 2, T 1, one layer: 2 FLOPs per weight and score, by hand."""
    config = ModelConfig(
        vocab_size=5, num_layers=1, embed_dim=2, num_heads=1, ffn_dim=3, activation="gelu"
    )
    flops = forward_flops_per_token(config, seq_len=1)
    assert flops == {
        "projections": 2 * 4 * 2 * 2,
        "scores and values": 2 * 2 * 2,
        "mlp": 2 * 2 * 2 * 3,
        "logits": 2 * 2 * 5,
    }


def test_active_parameters_are_those_of_a_model_with_only_the_experts_of_a_token():
    config = dataclasses.replace(BASE, num_experts=9, experts_per_token=2, num_shared_experts=1)
    smaller = dataclasses.replace(config, num_experts=2)
    routers = 7 * BASE.embed_dim * BASE.num_layers
    assert num_active_params(config) == sum(num_params(smaller).values()) + routers
    assert num_active_params(BASE) == sum(num_params(BASE).values())


def test_experts_cost_the_flops_of_the_mlp_that_a_token_meets():
    """Two routed and one shared expert are as one dense MLP of three times the width."""
    sparse = dataclasses.replace(BASE, num_experts=9, experts_per_token=2, num_shared_experts=1)
    dense = dataclasses.replace(BASE, ffn_dim=3 * BASE.ffn_dim)
    flops = forward_flops_per_token(sparse, 8)
    assert flops["mlp"] == 0
    assert flops["experts"] == forward_flops_per_token(dense, 8)["mlp"]
    assert flops["routers"] == 2 * BASE.num_layers * BASE.embed_dim * 9
