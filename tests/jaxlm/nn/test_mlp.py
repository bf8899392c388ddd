# SPDX-License-Identifier: Apache-2.0
"""The MLP's activations against float64."""

import jax
import numpy as np
import pytest

from jaxlm.model.config import ModelConfig
from jaxlm.nn.mlp import MLP
from tests.reference import decoder
from tests.reference.compare import in_float64, relative_error


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "relu2", "gelu"])
def test_every_activation_agrees_with_numpy(activation):
    sizes = {"vocab_size": 1, "num_layers": 3, "embed_dim": 5, "num_heads": 1, "head_dim": 2}
    c = ModelConfig(**sizes, ffn_dim=7, activation=activation)
    x = np.random.default_rng(0).normal(0, 3, (1, 11, 5)).astype(np.float32)
    mlp = MLP(7, activation, num_layers=3)
    params = jax.tree.map(
        lambda p: p.unbox(),
        mlp.init(jax.random.key(0), x)["params"],
        is_leaf=lambda p: hasattr(p, "unbox"),
    )
    assert ("w_gate" in params) == c.is_gated
    expected = decoder.mlp(in_float64(x[0]), in_float64(params), c)
    # three products of at most 7 terms: some ten roundings of 2^-24
    assert relative_error(mlp.apply({"params": params}, x)[0], expected) < 1e-6
