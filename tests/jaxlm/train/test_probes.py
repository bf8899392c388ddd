# SPDX-License-Identifier: Apache-2.0
"""What the probes report is what numpy finds, and looking changes no bit of the training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model.transformer import Model
from jaxlm.train.probes import Probe
from jaxlm.train.setup import on_mesh
from tests.jaxlm.train.conftest import CONFIG, changed


def run_steps(trainer, batches):
    """The state after these batches, and the metrics of every update."""
    found = []
    with on_mesh(trainer.mesh):
        state = trainer.fresh_state(CONFIG)
        for batch in batches:
            state, metrics = trainer.step(state, batch)
            found.append(jax.device_get(metrics))
    return state, found


def named(trainer, metrics):
    return dict(zip(trainer.probe.names, np.asarray(metrics["probes"]), strict=True))


def test_looking_changes_no_bit(make_trainer, random_batch):
    blind = make_trainer(changed("train", probe_every=None))
    looking = make_trainer(changed("train", probe_every=2))
    batches = [random_batch(step) for step in range(5)]
    (state, metrics), (state2, metrics2) = (run_steps(t, batches) for t in (blind, looking))
    assert [m["train/loss_nats"] for m in metrics] == [m["train/loss_nats"] for m in metrics2]
    jax.tree.map(np.testing.assert_array_equal, state.params, state2.params)


def test_it_looks_at_every_nth_update_only(make_trainer, random_batch):
    trainer = make_trainer(changed("train", probe_every=2))
    _, metrics = run_steps(trainer, [random_batch(step) for step in range(5)])
    seen = [bool(np.isfinite(m["probes"]).all()) for m in metrics]
    assert seen == [True, False, True, False, True]


@pytest.mark.parametrize(
    "pattern", [pytest.param(("full",), marks=pytest.mark.slow), ("local", "full")]
)
def test_norms_by_layer_and_kind_are_those_of_numpy(pattern):
    window = 8 if "local" in pattern else None
    config = changed("model", layer_pattern=pattern, window=window, num_layers=4).model
    probe = Probe(Model(config), 1, 1)
    params = Model(config).init(jax.random.key(0))
    found = dict(zip(probe._parts(), probe._norms(params), strict=True))
    blocks = params["layers"]
    for layer in range(4):
        turn, block = divmod(layer, len(pattern))
        leaves = jax.tree.leaves(blocks[f"block_{block}"])
        expected = np.sqrt(sum(np.sum(np.float64(leaf[turn]) ** 2) for leaf in leaves))
        np.testing.assert_allclose(found[f"layer_{layer}"], expected, rtol=1e-5)
    table = np.float64(params["embed"]["table"])
    np.testing.assert_allclose(found["embed"], np.sqrt(np.sum(table**2)), rtol=1e-5)


def test_update_ratio_and_lost_updates(make_trainer, random_batch):
    trainer = make_trainer(changed("train", probe_every=1))
    with on_mesh(trainer.mesh):
        state = trainer.fresh_state(CONFIG)
        before = jax.device_get(state.params)
        state, metrics = trainer.step(state, random_batch(0))
    found, after = named(trainer, metrics), jax.device_get(state.params)
    mlp = [np.float64(x) for x in jax.tree.leaves(before["layers"]["block_0"]["mlp"])]
    done = [np.float64(x) for x in jax.tree.leaves(after["layers"]["block_0"]["mlp"])]
    norm = lambda xs: np.sqrt(sum(np.sum(x * x) for x in xs))
    moved = norm([b - a for a, b in zip(mlp, done, strict=True)]) / norm(mlp)
    np.testing.assert_allclose(found["update/ratio_rms@mlp"], moved, rtol=1e-3)
    assert found["param/bf16_frac"] < 0.01


def test_parameters_held_in_bfloat16_show(make_trainer, random_batch):
    trainer = make_trainer(changed("train", probe_every=1))
    with on_mesh(trainer.mesh):
        state = trainer.fresh_state(CONFIG)
        rounded = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(p.dtype), state.params)
        _, metrics = trainer.step(state._replace(params=rounded), random_batch(0))
    assert named(trainer, metrics)["param/bf16_frac"] == 1.0


def test_the_largest_logit_is_that_of_the_definition(random_batch):
    model = Model(CONFIG.model)
    params, batch = model.init(jax.random.key(1)), random_batch(3, rows=2)
    inputs = [jnp.asarray(batch[name]) for name in ("tokens", "positions", "segment_ids")]
    found = model.largest_attention_logits(params, *inputs)
    twice = jax.tree.map(lambda p: p, params)
    block = dict(twice["layers"]["block_0"])
    attention = block["attention"]
    block["attention"] = {**attention, "wq": 3 * attention["wq"]}
    tripled = {**params, "layers": {"block_0": block}}
    again = model.largest_attention_logits(tripled, *inputs)
    np.testing.assert_allclose(again[0], 3 * found[0], rtol=1e-4)  # of layer 0: same inputs
    assert found.shape == (2,) and bool((found > 0).all())
