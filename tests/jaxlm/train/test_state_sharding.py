# SPDX-License-Identifier: Apache-2.0
"""What an optimizer keeps and does is split as its parameters are.

Legend: L layers  I width in  O width out
"""

import jax
import numpy as np
import pytest

from jaxlm.optim.muon import scale_by_muon
from jaxlm.sharding.by_layers import by_layers
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import spec
from jaxlm.train.checkpoint import Checkpointer, Identity, restore
from jaxlm.train.setup import on_mesh
from tests.jaxlm.train.conftest import changed

SMALL = 2**10  # bytes: norms, counters and what is left of a matrix's row


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "adafactor", "schedule_free"])
def test_no_large_leaf_of_the_state_is_replicated(make_trainer, optimizer) -> None:
    config = changed("optim", name=optimizer, schedule="constant")
    state = make_trainer(config, fsdp=4, model=2).abstract_state
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
        share = np.prod(leaf.sharding.shard_shape(leaf.shape)) / np.prod(leaf.shape)
        if leaf.size * leaf.dtype.itemsize > SMALL:
            assert share <= 1 / 2, jax.tree_util.keystr(path)


def test_rows_and_columns_of_adafactor_are_split_where_their_matrix_is(make_trainer) -> None:
    config = changed("optim", name="adafactor")
    state = make_trainer(config, fsdp=4, model=2).abstract_state
    specs = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        if "w_up" in jax.tree_util.keystr(path):
            specs[leaf.shape] = tuple(leaf.sharding.spec)
    wide = ("fsdp", "expert", "context")
    assert specs == {(2, 32, 1): ("pipeline", wide, None), (2, 1, 64): ("pipeline", None, "model")}


SIZES = [{"fsdp": 4, "model": 2}, {"fsdp": 8}, {"model": 4, "pipeline": 2}]


@pytest.mark.parametrize("layers", [2, 6, 8])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_layer_is_whole_once_and_nothing_is_gathered(sizes, layers) -> None:
    """The work mixes all entries of a layer, so that a part of one would give something else."""
    x_LIO = np.random.default_rng(0).normal(size=(layers, 16, 24)).astype(np.float32)
    work = lambda x_LIO: x_LIO @ x_LIO.swapaxes(1, 2) @ x_LIO
    axes = ("layers", "embed", "ffn")
    mesh = make_mesh(MeshConfig(data=1, **sizes))
    with on_mesh(mesh):
        split = jax.NamedSharding(mesh, jax.P("pipeline", ("fsdp",), "model"))
        x_placed = jax.device_put(x_LIO, split)
        spread = jax.jit(lambda x_LIO: by_layers(work, x_LIO, axes, (1, 2)), out_shardings=split)
        program = spread.lower(x_placed).compile()
        np.testing.assert_allclose(program(x_placed), work(x_LIO), rtol=1e-4, atol=1e-4)
    text = program.as_text()
    assert "all-to-all" in text
    assert "all-gather" not in text and "all-reduce" not in text


def muon(axes, spread):
    """(update,) -> (orthogonalised update, state), from a new state."""
    transform = scale_by_muon(0.0, 5, axes, spread)
    return lambda x: transform.update(x, transform.init(x))


@pytest.mark.parametrize(
    "sizes", [{"expert": 8}, {"expert": 4, "data": 2}, {"expert": 2, "fsdp": 4}]
)
def test_experts_are_worked_on_where_they_are(sizes) -> None:
    """Also where nothing but the experts is split: their matrices are whole, and stay."""
    x_LEIO = np.random.default_rng(0).normal(size=(8, 8, 16, 24)).astype(np.float32)
    axes = ("layers", "expert", "embed", "ffn")
    alone, _ = muon(axes, lambda work, x, *_: work(x))(x_LEIO)
    mesh = make_mesh(MeshConfig(**({"data": 1} | sizes)))
    with on_mesh(mesh):
        split = jax.NamedSharding(mesh, spec(axes))
        x_placed = jax.device_put(x_LEIO, split)
        program = (
            jax.jit(muon(axes, by_layers), out_shardings=(split, None)).lower(x_placed).compile()
        )
        np.testing.assert_allclose(program(x_placed)[0], alone, rtol=1e-3, atol=1e-4)
    text = program.as_text()
    assert "all-gather" not in text and "all-reduce" not in text


@pytest.mark.slow
def test_an_offloaded_state_rests_in_host_memory_also_after_a_restart(
    make_trainer, random_batch, tmp_path
) -> None:
    trainer = make_trainer(changed("train", offload_optimizer=True), fsdp=2)
    with on_mesh(trainer.mesh, trainer.rules):
        state, _ = trainer.step(trainer.init(jax.random.key(0)), random_batch(0))
        checkpoints = Checkpointer(tmp_path, 2, Identity("config", "data"))
        checkpoints.save(1, state)
        checkpoints.close()
        restored = restore(tmp_path, 1, trainer.abstract_state)
        again, _ = trainer.step(restored, random_batch(1))
        state, _ = trainer.step(state, random_batch(1))
    for one in (state, restored, again):
        arrays = [leaf for leaf in jax.tree.leaves(one.opt_state) if leaf.ndim]
        assert {leaf.sharding.memory_kind for leaf in arrays} == {"pinned_host"}
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
