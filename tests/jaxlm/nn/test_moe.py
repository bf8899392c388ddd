# SPDX-License-Identifier: Apache-2.0
"""The layer of experts against a loop over tokens in float64: values and gradients, at any balance.

Legend: B batch  T positions  D model width  E experts  F expert width  K experts of a token
        A assignments
"""

import itertools
from typing import Any

import autograd
import autograd.numpy as anp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model.config import ModelConfig
from jaxlm.nn import dispatch
from jaxlm.nn.moe import MoE
from jaxlm.nn.router import choose
from tests.reference import decoder, experts
from tests.reference.compare import in_float64, quick, relative_errors

# Three products, a softmax and a sum of at most 60 terms each way: some 40 roundings of 2^-24.
BOUND = 3e-6
E, D, F = 5, 10, 7
BASE: dict[str, Any] = {
    "vocab_size": 8,
    "num_layers": 2,
    "embed_dim": D,
    "num_heads": 1,
    "ffn_dim": F,
    "num_experts": E,
    "router_bias_rate": 0.01,
}
KINDS: dict[str, dict[str, Any]] = {
    "top_1": {"experts_per_token": 1, "router_normalized": False},
    "top_2": {"experts_per_token": 2},
    "all": {"experts_per_token": E, "router_scale": 2.5},
    "sigmoid_shared_geglu": {
        "experts_per_token": 2,
        "router_score": "sigmoid",
        "num_shared_experts": 2,
        "activation": "geglu",
    },
    "relu2_reference": {"activation": "relu2", "expert_impl": "reference"},
}
# What is added to the bias of every expert: all tokens to the first ones, none to the last one.
BALANCES = {
    "even": np.zeros(E),
    "one_takes_all": np.arange(E, 0, -1) * 10.0,
    "none": -9.0 * np.eye(E)[2],
}
# Lengths of documents in rows of T; what they leave is padding.
ROWS = {"rows": (9, [[4, 3], [9]]), "one_token": (1, [[1]]), "padding": (6, [[], [2]])}


def layer(c: ModelConfig) -> MoE:
    return MoE(
        num_experts=c.num_experts,
        experts_per_token=c.experts_per_token,
        expert_dim=c.expert_width,
        num_shared_experts=c.num_shared_experts,
        activation=c.activation,
        num_layers=c.num_layers,
        score=c.router_score,
        is_normalized=c.router_normalized,
        scale=c.router_scale,
        has_bias=True,
        impl=c.expert_impl,
    )


def params_of(c: ModelConfig, bias_E: np.ndarray) -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(layer(c).init, jax.random.key(0), jnp.zeros((1, 1, D)), None)["params"]
    draw = lambda leaf: rng.normal(0, 0.4, jax.tree.leaves(leaf)[0].shape).astype(np.float32)
    is_leaf = lambda x: hasattr(x, "names")
    return jax.tree.map(draw, shapes, is_leaf=is_leaf) | {"bias": bias_E.astype(np.float32)}


def rows_of(T: int, documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, segment ids, what the objective weighs the outputs by: nothing in the padding)."""
    rng = np.random.default_rng(1)
    x_BTD = rng.normal(size=(len(documents), T, D)).astype(np.float32)
    ids_BT = np.zeros((len(documents), T), np.int32)
    for row, lengths in enumerate(documents):
        ids_BT[row, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    weight_BTD = rng.normal(size=x_BTD.shape).astype(np.float32) * (ids_BT > 0)[..., None]
    return x_BTD, ids_BT, weight_BTD


def by_layer(c: ModelConfig, params: Any, rows: Any) -> tuple[Any, Any, Any]:
    x_BTD, ids_BT, weight_BTD = rows

    def objective(params: Any, x_BTD: Any) -> Any:
        y_BTD, routing = layer(c).apply({"params": params}, x_BTD, ids_BT)
        losses = c.router_balance_loss * routing.balance + c.router_z_loss * routing.z_squares
        return jnp.sum(weight_BTD * y_BTD) + losses, routing.choices_E

    found = quick(jax.value_and_grad(objective, (0, 1), has_aux=True))(params, x_BTD)
    (value, choices_E), grads = found
    return value, choices_E, grads


def by_loop(c: ModelConfig, params: Any, rows: Any) -> tuple[Any, Any, Any]:
    x_BTD, ids_BT, weight_BTD = rows
    choices_E = np.zeros(E)

    def objective(params: Any, x_BTD: Any) -> Any:
        total, routed = 0.0, []
        for b in range(len(ids_BT)):
            n = int((ids_BT[b] > 0).sum())
            routed.append([])
            if n:
                y_TD, did = experts.mixture(x_BTD[b, :n], params, c, decoder.mlp)
                total = total + anp.sum(weight_BTD[b, :n] * y_TD)
                routed[-1].append([did])
                choices_E[...] += np.array(did.choices_E)
        return total + experts.router_losses(routed, c)

    value, choices = objective(params, x_BTD), choices_E.tolist()
    return value, choices, tuple(autograd.grad(objective, i)(params, x_BTD) for i in (0, 1))


def cases() -> list[Any]:
    """All kinds with even experts, all balances and all rows for one kind; the others are slow."""
    is_common = lambda kind, balance, rows: (kind == "top_2", balance == "even", rows == "rows")
    is_quick = lambda *names: sum(is_common(*names)) > 1
    names = itertools.product(KINDS, BALANCES, ROWS)
    return [pytest.param(*n, marks=[] if is_quick(*n) else [pytest.mark.slow]) for n in names]


@pytest.mark.parametrize(("kind", "balance", "rows"), cases())
def test_values_and_gradients_are_those_of_a_loop_over_tokens(kind, balance, rows):
    kind, bias_E, rows = KINDS[kind], BALANCES[balance], ROWS[rows]
    c = ModelConfig(**BASE | {"router_balance_loss": 0.3, "router_z_loss": 0.2} | kind)
    params, rows = params_of(c, bias_E), rows_of(*rows)
    value, choices_E, grads = by_layer(c, params, rows)
    expected, expected_E, expected_grads = by_loop(c, in_float64(params), in_float64(rows))
    np.testing.assert_array_equal(choices_E, expected_E)
    errors = relative_errors((value, grads), (expected, expected_grads))
    assert max(errors.values()) <= BOUND, errors


def test_bfloat16_agrees_as_far_as_it_can():
    """Experts in bf16, the router in f32: tokens go where they go in f32."""
    c = ModelConfig(**BASE | KINDS["sigmoid_shared_geglu"])
    params, (x_BTD, ids_BT, _) = params_of(c, np.zeros(E)), rows_of(9, [[4, 3], [9]])
    x_BTD = jnp.asarray(x_BTD, jnp.bfloat16)
    run = quick(lambda x: layer(c).apply({"params": params}, x, ids_BT))
    (y, routing), (want, want_routing) = run(x_BTD), run(x_BTD.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(routing.choices_E, want_routing.choices_E)
    scale = np.abs(want).max()
    np.testing.assert_allclose(y.astype(jnp.float32), want, atol=0.02 * scale)


def test_padding_comes_back_as_zeros_and_is_not_counted():
    c = ModelConfig(**BASE)
    x_BTD, ids_BT, _ = rows_of(6, [[], [2]])
    y, routing = layer(c).apply({"params": params_of(c, np.zeros(E))}, x_BTD, ids_BT)
    assert not np.any(np.asarray(y)[ids_BT == 0]) and np.all(np.any(np.asarray(y)[1, :2], -1))
    assert routing.tokens == 2 and routing.choices_E.sum() == 2 * c.experts_per_token


def test_of_equal_scores_the_first_experts_are_chosen():
    choice = choose(jnp.zeros((1, 2, E)), None, 3, "softmax", True, 1.0)
    np.testing.assert_array_equal(choice.expert_BTK, [[[0, 1, 2]] * 2])
    np.testing.assert_allclose(choice.weight_BTK, 1 / 3, rtol=1e-6)


def test_the_bias_chooses_and_does_not_weigh():
    logits_11E = jnp.arange(E, dtype=jnp.float32)[None, None]
    bias_E = jnp.array([9.0, 0, 0, 0, 0])
    choice = choose(logits_11E, bias_E, 1, "softmax", False, 1.0)
    assert choice.expert_BTK.tolist() == [[[0]]]
    np.testing.assert_allclose(choice.weight_BTK.ravel(), jax.nn.softmax(logits_11E).ravel()[:1])
    weigh = lambda bias_E: jnp.sum(choose(logits_11E, bias_E, 2, "sigmoid", True, 1.0).weight_BTK)
    np.testing.assert_array_equal(jax.grad(weigh)(bias_E), np.zeros(E))


@pytest.mark.parametrize("name", ["spread", "permuted", "_weighted", "inverse"])
def test_a_broken_way_to_the_experts_or_back_is_seen(name, monkeypatch):
    """Mutations: a dropped weight, a wrong order, a gradient that is not the transpose."""
    broken = {
        "spread": lambda x, plan, k: x[plan.place_A // k],
        "permuted": lambda y, order, place: y[place],
        "_weighted": lambda x, weight: x,
        "inverse": lambda order: order,
    }
    monkeypatch.setattr(dispatch, name, broken[name], raising=False)
    monkeypatch.setattr("jaxlm.nn.experts." + name, broken[name], raising=False)
    c = ModelConfig(**BASE | KINDS["top_2"])
    params, rows = params_of(c, np.zeros(E)), rows_of(9, [[4, 3], [9]])
    value, _, _ = by_layer(c, params, rows)
    expected, _, _ = by_loop(c, in_float64(params), in_float64(rows))
    assert abs(value - expected) > 1e-3
