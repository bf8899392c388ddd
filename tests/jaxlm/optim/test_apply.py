# SPDX-License-Identifier: Apache-2.0
"""The guarded update: all or nothing, in place, and what it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.optim.apply import apply_update
from jaxlm.optim.build import make_optimizer
from jaxlm.optim.config import OptimConfig
from jaxlm.optim.hparams import hparams

PARAMS = {"a": np.float32([[1.0, -2.0], [3.0, -0.0]]), "b": np.float32([0.5])}
GRADS = {"a": np.float32([[3.0, 0.0], [0.0, 0.0]]), "b": np.float32([4.0])}
TX = optax.chain(optax.trace(0.9), optax.scale(-0.1))


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_finite_update_is_applied_and_measured():
    state = TX.init(PARAMS)
    params, state, metrics = jax.jit(lambda *args: apply_update(TX, *args))(
        True, GRADS, state, PARAMS
    )
    np.testing.assert_allclose(params["a"], PARAMS["a"] - 0.1 * GRADS["a"], rtol=1e-6)
    assert float(state[0].trace["b"][0]) == 4.0
    assert bool(metrics["update/applied"])
    np.testing.assert_allclose(metrics["grad/norm_l2"], 5.0)
    np.testing.assert_allclose(metrics["param/norm_l2"], np.sqrt(14.25))
    np.testing.assert_allclose(metrics["update/ratio_rms"], 0.5 / np.sqrt(14.25), rtol=1e-6)


@pytest.mark.parametrize("where", ["loss", "gradient", "parameter"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_update_leaves_every_bit_as_it_was(where, value):
    params, grads = jax.tree.map(np.copy, (PARAMS, GRADS))
    state = jax.tree.map(lambda x: x + 1, TX.init(PARAMS))
    if where != "loss":
        (grads if where == "gradient" else params)["b"][0] = value
    new_params, new_state, metrics = jax.jit(lambda *args: apply_update(TX, *args))(
        where != "loss", grads, state, params
    )
    assert bits(new_params) == bits(params)
    assert bits(new_state) == bits(state)
    assert not metrics["update/applied"]
    assert where == "parameter" or metrics["update/ratio_rms"] == 0


def test_parameters_of_zero_have_a_ratio_of_zero():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    metrics = apply_update(TX, jnp.bool_(True), GRADS, TX.init(zeros), zeros)[2]
    assert metrics["update/ratio_rms"] == 0


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_donated_state_is_updated_in_place(name):
    """A select between old and new state costs a copy of the state, and 4 times the time."""
    axes = {f"w{i}": ("layers", "embed", "ffn") for i in range(3)}
    params = {key: jnp.ones((2, 64, 128 + i)) for i, key in enumerate(axes)}
    config = OptimConfig(peak_lr=1.0, name=name)
    tx = make_optimizer(config, axes)(hparams(config, 10), 0)
    update = jax.jit(
        lambda params, state, grads: apply_update(tx, jnp.bool_(True), grads, state, params),
        donate_argnums=(0, 1),
    )
    program = update.lower(params, tx.init(params), params).compile().as_text()
    lines = program.splitlines()
    assert [line for line in lines if "f32[2,64," in line and " copy(" in line] == []
