# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism moves activations: along the sequence between blocks, and never a weight."""

import math
import re

import jax
import numpy as np
import pytest

from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Model
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import ROWS, rules_of, shardings
from jaxlm.train.setup import on_mesh

B, T, D, F = 4, 24, 32, 96
TINY = ModelConfig(vocab_size=320, num_layers=2, embed_dim=D, num_heads=4, ffn_dim=F)


def moved(**sizes: object) -> dict[str, set[int]]:
    """Kind of collective -> sizes of what it makes, in numbers, of the layers' forward pass."""
    config = MeshConfig(**{"data": 2, "model": 4} | sizes)
    mesh, model = make_mesh(config), Model(TINY)
    with on_mesh(mesh, rules_of(config)):
        params = jax.eval_shape(model.init, jax.random.key(0))
        split = shardings(model.axes(), mesh)
        tokens = jax.ShapeDtypeStruct((B, T), np.int32)
        rows = jax.NamedSharding(mesh, ROWS)
        run = jax.jit(model.apply, in_shardings=(split, rows))
        text = run.lower(params, tokens).compile().as_text()
    found: dict[str, set[int]] = {}
    for shape, kind in re.findall(r"= f32\[([\d,]+)\]\S* (all-\w+|reduce-scatter)\(", text):
        found.setdefault(kind, set()).add(math.prod(map(int, shape.split(","))))
    return found


@pytest.mark.parametrize("is_split", [True, False])
def test_activations_move_and_weights_do_not(is_split: bool) -> None:
    whole, share = B // 2 * T * D, B // 2 * T * D // 4
    found = moved(sequence_parallel=is_split)
    assert set().union(*found.values()) <= {whole, share}
    assert ("all-gather" in found) == is_split
    weights = {D * D, D * D // 4, D * F, D * F // 4}
    assert not weights & {whole, share}  # else they could not be told apart
