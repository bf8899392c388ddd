# SPDX-License-Identifier: Apache-2.0
"""One row of one token at a time, on a mesh that was made for long batches."""

import jax
import pytest

from jaxlm.generate import Generator, Sampling
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Model
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import rules_of, shardings
from jaxlm.train.setup import on_mesh

MODEL = ModelConfig(vocab_size=64, num_layers=2, embed_dim=16, num_heads=2, ffn_dim=32)


@pytest.mark.slow
def test_stages_and_a_split_sequence_do_not_change_what_is_drawn() -> None:
    prompt, greedy, rng = [3, 5, 7, 11, 13], Sampling(temperature=0), jax.random.key(1)
    params = Model(MODEL).init(jax.random.key(0))
    want = list(Generator(Model(MODEL)).stream(params, prompt, 4, greedy, rng))
    config = MeshConfig(data=1, pipeline=2, context=2, model=2)
    mesh, model = make_mesh(config), Model(MODEL, config)
    placed = jax.device_put(params, shardings(model.axes(), mesh))
    with on_mesh(mesh, rules_of(config)):
        assert list(Generator(model).stream(placed, prompt, 4, greedy, rng)) == want


def test_rows_of_the_embedding_that_no_token_has_are_never_drawn():
    model = Model(MODEL)
    params = model.init(jax.random.key(0))
    hot, prompt = Sampling(temperature=100.0), [1, 2]
    drawn = list(Generator(model, 5).stream(params, prompt, 40, hot, jax.random.key(1)))
    assert len(drawn) == 40 and set(drawn) == set(range(5))
