# SPDX-License-Identifier: Apache-2.0
"""Experts split over a mesh give what one device gives, whoever gets how many rows.

Legend: B batch  T positions  D model width  E experts  F expert width
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn import exchange, experts
from jaxlm.nn.experts import ExpertWeights, Rules, mixture
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.train.setup import on_mesh
from tests.reference.compare import quick

B, T, D, E, F = 8, 4, 16, 8, 12
MESHES: dict[str, dict[str, int]] = {
    "expert": {"expert": 8},
    "expert_fsdp": {"expert": 4, "fsdp": 2},
    "expert_model": {"expert": 2, "model": 4},
    "expert_data_model": {"data": 2, "expert": 2, "model": 2},
    "fsdp_context_model": {"fsdp": 2, "context": 2, "model": 2},
    "expert_context_slice": {"slice": 2, "expert": 2, "context": 2},
    "expert_of_four": {"expert": 4},
}
# Added to the logits: so that all go everywhere, all to the experts of one device, or some nowhere.
BALANCES = {
    "even": np.zeros(E),
    "one_takes_all": 40.0 * (np.arange(E) == 5),
    "none_for_most": np.where(np.arange(E) < 2, 40.0, 0.0),
}


@functools.cache
def arrays() -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    weights = ExpertWeights(normal(E, D, F), normal(E, D, F), normal(E, F, D))
    return normal(B, T, D), normal(B, T, E), weights, normal(B, T, D), rng.random((B, T)) > 0.2


RULES = Rules(2, "softmax", True, 1.0, "swiglu", "auto")


@functools.cache
def of_one_device(balance: str, rules: Rules = RULES) -> Any:
    return jax.device_get(gradients(balance, rules))


def gradients(balance: str, rules: Rules = RULES) -> Any:
    offset_E = BALANCES[balance]
    x_BTD, logits_BTE, weights, weigh_BTD, counted_BT = arrays()

    def objective(x_BTD: Any, logits_BTE: Any, weights: Any) -> Any:
        logits_BTE = logits_BTE + offset_E.astype(np.float32)[None, None]
        y, sums = mixture(x_BTD, logits_BTE, None, counted_BT, weights, rules)
        return jnp.sum(weigh_BTD * y) + jnp.sum(sums.shares_BE**2) + jnp.sum(sums.z_B), sums

    function = quick(jax.value_and_grad(objective, (0, 1, 2), has_aux=True))
    return function(x_BTD, logits_BTE, weights)


def on(sizes: dict[str, int]) -> Any:
    config = MeshConfig(**{"data": 1} | sizes)
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    return on_mesh(make_mesh(config, devices))


def worst(found: Any, expected: Any) -> float:
    """The largest difference of an array, as a share of its largest entry."""
    errors = jax.tree.map(lambda a, b: np.max(np.abs(a - b)) / np.max(np.abs(b)), found, expected)
    return max(jax.tree.leaves(errors))


def cases() -> list[Any]:
    quick = {
        ("expert", "even"),
        ("expert_context_slice", "even"),
    }
    return [
        pytest.param(mesh, balance, marks=[] if (mesh, balance) in quick else [pytest.mark.slow])
        for mesh in MESHES
        for balance in BALANCES
    ]


@pytest.mark.parametrize(("mesh", "balance"), cases())
def test_experts_of_a_mesh_are_those_of_one_device(mesh, balance):
    with on(MESHES[mesh]):
        found = gradients(balance)
    assert worst(found, of_one_device(balance)) < 3e-6


@pytest.mark.parametrize("num_chosen", [1, pytest.param(E, marks=pytest.mark.slow)])
def test_one_expert_or_all_of_a_token(num_chosen):
    rules = Rules(num_chosen, "sigmoid", False, 2.5, "relu2", "auto")
    with on({"expert": 4, "model": 2}):
        found = gradients("even", rules)
    assert worst(found, of_one_device("even", rules)) < 3e-6


def test_rows_that_do_not_divide_stay_whole():
    """One row, in decoding, on a mesh that splits eight."""
    x_BTD, logits_BTE, weights, *_ = jax.tree.map(jnp.asarray, arrays())
    run = lambda: mixture(x_BTD[:1], logits_BTE[:1], None, None, weights, RULES)[0]
    with on({"expert": 4, "fsdp": 2}):
        found = quick(run)()
    np.testing.assert_allclose(found, quick(run)(), rtol=1e-5, atol=1e-5)


BROKEN = {
    "a missing sum over the width": (experts, "_sum_over", lambda axes, x: x),
    "rows of an expert left where they arrived": (
        experts,
        "permuted",
        lambda y, order, place: y,
    ),
    "rows sent back as if never sent": (
        experts,
        "send_back",
        lambda y, route, axis: y[: len(y) // jax.lax.axis_size(axis)],
    ),
    "one device's rows lost": (
        exchange,
        "_starts",
        lambda sizes, axis: jnp.cumsum(sizes, axis=axis),
    ),
}


@pytest.mark.parametrize(("module", "name", "broken"), BROKEN.values(), ids=BROKEN)
def test_a_broken_exchange_is_seen(module, name, broken, monkeypatch):
    expected = of_one_device("even")
    monkeypatch.setattr(module, name, broken)
    with on({"expert": 2, "model": 2}):
        found = gradients("even")
    assert worst(found, expected) > 1e-2
