# SPDX-License-Identifier: Apache-2.0
"""The model, its loss and all its gradients against float64 NumPy (tests/reference/decoder.py).

The reference runs every document of a packed row alone, so each comparison is also the property
that a packed row gives a document the loss and the gradient that it gets by itself.

Legend: B batch  T positions
"""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxlm.loss import LossSums, batch_loss
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Model
from jaxlm.train.state import TrainState
from jaxlm.train.step import make_train_step
from tests.reference import decoder
from tests.reference.compare import (
    in_float64,
    packed_batch,
    quick,
    random_params,
    relative_error,
    relative_errors,
)

Z_LOSS = 0.1

# f32 rounds each operation by at most 2^-24 = 6e-8.  The path from the loss to a parameter of the
# first of two layers is about 100 dependent operations, half of them sums over 6 to 150 terms:
# at worst 100 roundings that all agree, 6e-6, and twice that where sums cancel.
F32_BOUND = 1.2e-5
# A forward pass is a third of that path.
F32_FORWARD_BOUND = 4e-6
# bf16 rounds by at most 2^-9 = 2e-3.  About 20 roundings per layer do not agree in sign, so they
# add up as sqrt(40) * 2e-3 = 1.2e-2 over two layers, and the backward pass does twice as many more:
# sqrt(120) * 2e-3 = 2.1e-2.  Twice that is allowed for the gradient as a whole, and three times
# more for one array of it, whose few entries are sums over 18 positions that partly cancel.
BF16_BOUND = 4.4e-2
BF16_ARRAY_BOUND = 3 * BF16_BOUND

# All dimensions differ; norm_eps is so large, and theta so small, that a wrong one shows.
BASE = {
    "vocab_size": 23,
    "num_layers": 2,
    "embed_dim": 10,
    "num_heads": 4,
    "head_dim": 6,
    "ffn_dim": 11,
    "norm_eps": 0.05,
    "rope_theta": 50.0,
    "attention_impl": "reference",
}
# Several documents, one that fills its row, one of a single token, a padded tail, a row of padding.
PACKED = [[5, 1, 4], [13], []]

SWITCHES: dict[str, dict[str, Any]] = {
    "as_is": {},
    "multi_query": {"num_kv_heads": 1},
    "head_dim_of_the_stream": {"embed_dim": 12, "num_heads": 3, "head_dim": None},
    "layer_pattern": {"num_layers": 6, "layer_pattern": ("local", "local", "full"), "window": 2},
    "geglu_and_yarn": {
        "activation": "geglu",
        "rope_scaling": "yarn",
        "rope_factor": 3.0,
        "rope_original_len": 300,
    },
    "relu2_and_llama3": {
        "activation": "relu2",
        "rope_scaling": "llama3",
        "rope_factor": 3.0,
        "rope_original_len": 90,
    },
    "gelu_and_ntk": {"activation": "gelu", "rope_scaling": "ntk", "rope_factor": 3.0},
}
EXPERTS = {"num_experts": 5, "expert_ffn_dim": 7, "router_balance_loss": 0.3, "router_z_loss": 0.2}
MIXTURES: dict[str, dict[str, Any]] = {
    "top_1": EXPERTS | {"experts_per_token": 1, "router_normalized": False},
    "top_2_shared_after_dense": EXPERTS | {"num_shared_experts": 2, "num_dense_layers": 1},
    "all_relu2": EXPERTS | {"experts_per_token": 5, "activation": "relu2"},
    "sigmoid_bias": EXPERTS
    | {"experts_per_token": 3, "router_score": "sigmoid", "router_bias_rate": 0.1}
    | {"router_scale": 2.5, "activation": "geglu"},
    "softmax_bias_unnormalised": EXPERTS
    | {"router_normalized": False, "router_bias_rate": 0.1, "expert_impl": "reference"},
}
# Parts of EVERYTHING, one at a time: to find out which one it is when EVERYTHING fails.
SINGLE_SWITCHES: dict[str, dict[str, Any]] = {
    "grouped_query": {"num_kv_heads": 2},
    "qk_norm": {"qk_norm": True},
    "sinks": {"attention_sinks": True},
    "attention_softcap": {"attention_softcap": 1.5},
    "logit_softcap": {"logit_softcap": 2.0},
    "untied": {"tied_embeddings": False},
    "window": {"layer_pattern": ("local",), "window": 3},
    "linear": {"rope_scaling": "linear", "rope_factor": 3.0},
}

EVERYTHING = {
    "num_kv_heads": 2,
    "layer_pattern": ("local", "full"),
    "window": 4,
    "attention_softcap": 1.5,
    "attention_sinks": True,
    "qk_norm": True,
    "tied_embeddings": False,
    "logit_softcap": 4.0,
}
# Half a minute of compiling each, and another of its kind stays among the quick ones.
LONG = ("experts_block_inputs_remat", "experts_dots_remat", "everything_block_inputs_remat")
LONG += ("top_1", "top_2_shared_after_dense", "all_relu2", "softmax_bias_unnormalised")
LONG += ("layer_pattern", "head_dim_of_the_stream", "sigmoid_bias", "everything_dots_remat")
LONG += ("everything_products_but_up_remat",)  # of the remats, "full" is checked each time
COMBINATIONS: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING,
    "everything_full_remat": EVERYTHING
    | {"remat": "full", "num_layers": 4, "rope_scaling": "linear", "rope_factor": 3.0}
    | {"scan_unroll": 2},
    "everything_dots_remat": EVERYTHING
    | {"remat": "dots", "activation": "geglu", "num_kv_heads": 1},
    "everything_products_but_up_remat": EVERYTHING | {"remat": "products_but_up"},
    "everything_block_inputs_remat": EVERYTHING | {"remat": "block_inputs", "num_kv_heads": 4},
    "window_of_one_with_sinks": {
        "layer_pattern": ("local",),
        "window": 1,
        "attention_sinks": True,
    },
    "window_beyond_the_row": {
        "layer_pattern": ("local",),
        "window": 14,
        "num_kv_heads": 2,
    },
    # Not deeper: with six layers, rounding the parameters alone moves the exact gradient by 2e-5.
    "everything_with_experts": EVERYTHING
    | MIXTURES["sigmoid_bias"]
    | {"num_layers": 4, "num_dense_layers": 2, "num_shared_experts": 1, "remat": "full"},
    "experts_block_inputs_remat": EVERYTHING | EXPERTS | {"remat": "block_inputs", "num_layers": 4},
    "experts_dots_remat": EVERYTHING | EXPERTS | {"remat": "dots", "experts_per_token": 4},
}


def config(**overrides: Any) -> ModelConfig:
    return ModelConfig(**(BASE | overrides))


def sums_and_grads(c: ModelConfig, params: Any, batch: dict[str, Any]) -> tuple[LossSums, Any]:
    model = Model(c)

    def objective(params: Any) -> tuple[jax.Array, LossSums]:
        sums = batch_loss(model, params, batch, Z_LOSS)
        return sums.loss, sums

    step = quick(jax.value_and_grad(objective, has_aux=True))
    (_, sums), grads = step(params)
    return sums, grads


def errors_against_numpy(c: ModelConfig, batch: dict[str, Any]) -> dict[str, float]:
    """Relative errors of the sums and of every gradient; "grads" is the whole gradient's."""
    params = random_params(Model(c))
    sums, grads = sums_and_grads(c, params, batch)
    expected_sums = decoder.loss_sums(in_float64(params), batch, c)
    _, expected_grads = decoder.loss_and_grads(in_float64(params), batch, c, Z_LOSS)
    expected = expected_sums._asdict()
    routers = expected.pop("routers")
    expected["loss"] = expected["nats"] + Z_LOSS * expected["z_squares"] + routers
    errors = relative_errors({name: getattr(sums, name) for name in expected}, expected)
    errors["grads"] = relative_error(
        *(np.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (grads, expected_grads))
    )
    return errors | relative_errors(grads, expected_grads)


def assert_within(errors: dict[str, float], bound: float) -> None:
    assert max(errors.values()) <= bound, {k: e for k, e in errors.items() if e > bound}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", SINGLE_SWITCHES.values(), ids=SINGLE_SWITCHES)
def test_every_switch_by_itself_agrees_with_numpy(overrides):
    batch = packed_batch(PACKED, T=13, vocab=23)
    assert_within(errors_against_numpy(config(**overrides), batch), F32_BOUND)


def runs(cases: dict[str, dict[str, Any]]) -> list[Any]:
    slow = lambda name: [pytest.mark.slow] if name in LONG else []
    return [pytest.param(overrides, id=name, marks=slow(name)) for name, overrides in cases.items()]


@pytest.mark.parametrize("overrides", runs(SWITCHES | MIXTURES))
def test_every_switch_agrees_with_numpy(overrides):
    batch = packed_batch(PACKED, T=13, vocab=23)
    assert_within(errors_against_numpy(config(**overrides), batch), F32_BOUND)


@pytest.mark.parametrize("overrides", runs(COMBINATIONS))
def test_combinations_agree_with_numpy(overrides):
    batch = packed_batch(PACKED, T=13, vocab=23, seed=1)
    assert_within(errors_against_numpy(config(**overrides), batch), F32_BOUND)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"attention_impl": "auto", "attention_sinks": True},
        EVERYTHING | {"attention_impl": "xla", "window": 50, "remat": "block_inputs"},
    ],
    ids=["auto", "xla_everything"],
)
def test_rows_of_several_blocks_agree_with_numpy(overrides):
    # 130 positions are blocks of 64, 64 and 2; two documents lie across the borders
    batch = packed_batch([[60, 3, 66]], T=130, vocab=23)
    assert_within(errors_against_numpy(config(**overrides), batch), F32_BOUND)


def test_bfloat16_compute_agrees_with_numpy_as_far_as_bfloat16_can():
    batch = packed_batch(PACKED, T=13, vocab=23)
    errors = errors_against_numpy(config(**EVERYTHING, compute_dtype="bfloat16"), batch)
    del errors["['correct']"]  # a count: near ties may fall otherwise
    assert errors["grads"] <= BF16_BOUND
    assert_within(errors, BF16_ARRAY_BOUND)


def test_logits_of_every_document_are_those_it_gets_alone():
    c, batch = config(**EVERYTHING), packed_batch(PACKED, T=13, vocab=23)
    model = Model(c)
    params = random_params(model)
    inputs = batch["tokens"], batch["positions"], batch["segment_ids"]
    run = lambda p: model.logits(p, model.apply(p, *inputs))
    logits = quick(run)(params)
    for b, where in decoder.documents(batch["segment_ids"]):
        alone = decoder.document_logits(in_float64(params), batch["tokens"][b, where], c)
        assert relative_error(logits[b, where], alone) < F32_FORWARD_BOUND


def test_rows_without_positions_or_segments_are_single_documents():
    c, model = config(), Model(config())
    params, tokens = (
        random_params(model),
        packed_batch([[13], [13]], T=13, vocab=23)["tokens"],
    )
    run = lambda p: model.logits(p, model.apply(p, tokens))
    logits = quick(run)(params)
    for b in range(2):
        alone = decoder.document_logits(in_float64(params), tokens[b], c)
        assert relative_error(logits[b], alone) < F32_FORWARD_BOUND


@pytest.mark.parametrize("num_micro_batches", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(num_micro_batches):
    """Rows of very different token counts, two of them empty: a mean of means would show."""
    c = config(num_kv_heads=2)
    batch = packed_batch([[13], [1], [], [2, 3], [], [4]], T=13, vocab=23)
    model = Model(c)
    params = random_params(model)
    zeros = jax.tree.map(np.zeros_like, params)
    # an optimizer that changes nothing and leaves the gradient in its state
    keep = optax.GradientTransformation(lambda _: zeros, lambda grads, *_: (zeros, grads))

    loss = functools.partial(batch_loss, model)
    step = make_train_step(loss, lambda *_: keep, lambda *_: 1.0, num_micro_batches)
    hparams = {"z_loss": np.float32(Z_LOSS), "peak_lr": np.float32(1)}
    state = TrainState(np.int32(0), params, zeros, hparams)
    state, metrics = quick(step)(state, batch)

    sums = decoder.loss_sums(in_float64(params), batch, c)
    _, grads = decoder.loss_and_grads(in_float64(params), batch, c, Z_LOSS)
    mean_grads = jax.tree.map(lambda g: g / sums.tokens, grads)
    assert_within(relative_errors(state.opt_state, mean_grads), F32_BOUND)
    assert relative_error(metrics["train/loss_nats"], sums.nats / sums.tokens) < F32_FORWARD_BOUND
    assert metrics["train/tokens"] == sums.tokens


def test_the_reference_gradient_is_the_slope_of_the_reference_loss():
    """The oracle itself: autograd's gradient against a central difference along one direction."""
    c, batch = config(**EVERYTHING), packed_batch([[5, 2]], T=7, vocab=23)
    params = in_float64(random_params(Model(c)))
    direction = in_float64(random_params(Model(c), seed=9))

    def at(h):
        return jax.tree.map(lambda p, d: p + h * d, params, direction)

    def loss(p):
        return decoder.loss_and_grads(p, batch, c, Z_LOSS)

    slope = (loss(at(1e-5))[0] - loss(at(-1e-5))[0]) / 2e-5
    products = jax.tree.map(lambda g, d: np.sum(g * d), loss(params)[1], direction)
    # the difference quotient is off by h^2 times the third derivative
    assert abs(slope - sum(jax.tree.leaves(products))) < 1e-6 * abs(slope)
