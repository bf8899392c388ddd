# SPDX-License-Identifier: Apache-2.0
"""Properties of the whole decoder: what depends on what, the cache, remat, the scan over depth.

Legend: B batch  T positions  S cache slots  D model width
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.loss import batch_loss
from jaxlm.model.block import Block
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Model
from jaxlm.nn.attention import Where
from jaxlm.nn.rope import rope_frequencies, rope_tables
from tests.reference.compare import (
    packed_batch,
    quick,
    random_params,
    relative_error,
)

VOCAB = 19
# Two ways through the same numbers in f32: some 50 dependent roundings of 6e-8.
SAME = 3e-6
RICH = {
    "num_kv_heads": 2,
    "layer_pattern": ("local", "full"),
    "window": 3,
    "attention_softcap": 2.0,
    "attention_sinks": True,
    "qk_norm": True,
}

EXPERTS = {
    "num_layers": 6,
    "num_dense_layers": 2,
    "num_experts": 4,
    "num_shared_experts": 1,
    "router_bias_rate": 0.1,
}


def build(**overrides: Any) -> tuple[Model, Any]:
    sizes = {"num_layers": 2, "embed_dim": 8, "num_heads": 4, "head_dim": 4, "ffn_dim": 9}
    model = Model(ModelConfig(vocab_size=VOCAB, rope_theta=50.0, **(sizes | overrides)))
    return model, random_params(model)


def dependence(model: Model, params: Any, T: int, segment_ids=None) -> np.ndarray:
    """(T, T) bool: whether the hidden state at t changes with the embedding of position s."""
    tokens = np.arange(T, dtype=np.int32)[None]  # all different: a table row stands for a position
    with_table = lambda table: params | {"embed": {"table": table}}
    hidden = lambda table: model.apply(with_table(table), tokens, None, segment_ids)[0]
    jacobian_TDSD = quick(jax.jacrev(hidden))(params["embed"]["table"])
    return np.asarray(jnp.abs(jacobian_TDSD).sum((1, 3)) > 0)[:, :T]


def test_no_hidden_state_depends_on_a_later_token():
    model, params = build(num_kv_heads=2)
    np.testing.assert_array_equal(dependence(model, params, 7), np.tri(7, dtype=bool))


def test_two_windowed_layers_reach_twice_as_far_back_as_one():
    model, params = build(layer_pattern=("local",), window=3)
    distance = np.subtract.outer(np.arange(9), np.arange(9))
    expected = (distance >= 0) & (distance <= 2 * (3 - 1))
    np.testing.assert_array_equal(dependence(model, params, 9), expected)


def test_no_document_of_a_row_depends_on_another():
    model, params = build(**RICH | {"layer_pattern": ("full",), "window": None})
    ids = np.array([[1, 1, 1, 2, 2, 0, 0]])
    expected = np.tri(7, dtype=bool) & (ids == ids.T)
    np.testing.assert_array_equal(dependence(model, params, 7, ids), expected)


def test_counting_positions_through_the_row_changes_nothing():
    """Scores know distances only, so positions need not restart in each document."""
    model, params = build(**RICH)
    batch = packed_batch([[5, 3], [8]], T=8, vocab=VOCAB)

    def run(positions):
        return model.apply(params, batch["tokens"], positions, batch["segment_ids"])

    assert relative_error(run(None), run(batch["positions"])) < SAME


def test_what_padding_holds_changes_neither_loss_nor_gradient():
    model, params = build(**RICH)
    batch = packed_batch([[5, 1], []], T=8, vocab=VOCAB)
    is_padding = batch["segment_ids"] == 0
    other = {
        k: np.where(is_padding, (batch[k] + 7) % VOCAB, batch[k]) for k in ("tokens", "targets")
    }
    step = quick(jax.value_and_grad(lambda p, b: batch_loss(model, p, b).nats))
    jax.tree.map(np.testing.assert_array_equal, step(params, batch), step(params, batch | other))


def test_remat_policies_store_less_and_less():
    """Bytes between forward and backward pass: none > dots > block_inputs > full."""

    def stored(remat: str) -> int:
        model, params = build(num_layers=8, ffn_dim=64, remat=remat)
        tokens = np.zeros((2, 32), np.int32)
        saved = jax.eval_shape(lambda p: jax.vjp(lambda p: model.apply(p, tokens), p)[1], params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved))

    sizes = [stored(remat) for remat in ("none", "dots", "block_inputs", "full")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


@pytest.mark.parametrize("unroll", [1, 2])  # 2 leaves a third turn over
def test_the_scan_over_depth_is_the_layers_one_after_another(unroll):
    model, params = build(**RICH, num_layers=6, scan_unroll=unroll)
    c, tokens = model.config, packed_batch([[8]], T=8, vocab=VOCAB)["tokens"]
    tables = rope_tables(jnp.arange(8)[None], *rope_frequencies(c.head_width, c.rope_theta))
    x = jnp.asarray(params["embed"]["table"][tokens])
    for i in range(c.num_layers):
        of_layer = jax.tree.map(lambda p, i=i: p[i // 2], params["layers"][f"block_{i % 2}"])
        block = Block(c, c.layer_pattern[i % 2])
        x, *_ = quick(block.apply)({"params": of_layer}, x, Where(tables, None, None), None)
    x = np.asarray(x)
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + c.norm_eps) * params["final_norm"]["scale"]
    assert relative_error(quick(model.apply)(params, tokens), x) < SAME


def continue_cached(model: Model, params: Any, tokens: np.ndarray, caches: Any, chunks: list[int]):
    """Hidden states of tokens fed in chunks from position 0 on."""
    step = quick(model.apply_cached)
    outs, start = [], 0
    for size in chunks:
        offset_B = jnp.full(len(tokens), start)
        out, caches = step(params, tokens[:, start : start + size], caches, offset_B)
        outs.append(out)
        start += size
    return np.concatenate(outs, axis=1)


@pytest.mark.parametrize(
    ("chunks", "overrides"),
    [
        *(([1] * 9, {}), ([4, 1, 1, 3], {}), ([2, 7], {})),
        pytest.param([4, 1, 1, 3], EXPERTS, marks=pytest.mark.slow),
    ],
    ids=["one by one", "4 1 1 3", "2 7", "experts after dense layers"],
)
def test_cached_decoding_equals_the_full_forward_pass(chunks, overrides):
    model, params = build(**(RICH | overrides))
    tokens = packed_batch([[9], [9]], T=9, vocab=VOCAB)["tokens"]
    # slots not written yet hold rubbish: nothing may look at them
    caches = jax.tree.map(lambda x: x + 100.0, model.init_cache(batch=2, num_slots=12))
    cached = continue_cached(model, params, tokens, caches, chunks)
    assert relative_error(cached, quick(model.apply)(params, tokens)) < SAME


@pytest.mark.slow
def test_cached_decoding_in_bfloat16_rounds_as_the_full_forward_pass_does():
    model, params = build(**RICH, compute_dtype="bfloat16")
    tokens = packed_batch([[9]], T=9, vocab=VOCAB)["tokens"]
    caches = model.init_cache(batch=1, num_slots=9)
    assert {x.dtype for x in jax.tree.leaves(caches)} == {jnp.dtype("bfloat16")}
    cached = continue_cached(model, params, tokens, caches, [4, 1, 4])
    # equal but for the order of f32 sums, which moves some values to the neighbour in bf16, 2^-8
    assert relative_error(cached, quick(model.apply)(params, tokens)) < 2.0**-8


def test_rows_of_the_cache_continue_at_their_own_positions():
    """Prompts of 3 and 7 tokens, prefilled together, then four tokens more for each."""
    model, params = build(**RICH)
    tokens = packed_batch([[11], [11]], T=11, vocab=VOCAB)["tokens"]
    lengths, rows = np.array([3, 7]), np.arange(2)
    step = quick(model.apply_cached)
    padded = np.where(np.arange(7) < lengths[:, None], tokens[:, :7], 0)
    _, caches = step(params, padded, model.init_cache(2, 11), jnp.zeros(2, int))
    full = np.asarray(quick(model.apply)(params, tokens))
    for i in range(4):
        at = lengths + i
        out, caches = step(params, tokens[rows, at][:, None], caches, jnp.asarray(at))
        assert relative_error(out[:, 0], full[rows, at]) < SAME


@pytest.mark.parametrize(
    "overrides",
    [{}, RICH | {"tied_embeddings": False}, RICH | EXPERTS],
    ids=["plain", "rich", "moe"],
)
def test_every_dimension_of_every_parameter_has_a_logical_axis(overrides):
    model, params = build(**overrides)

    def is_axes(leaf):
        return isinstance(leaf, tuple)

    axes = jax.tree.map(len, model.axes(), is_leaf=is_axes)
    assert axes == jax.tree.map(lambda p: p.ndim, params)
    assert model.axes()["layers"]["block_0"]["attention"]["wq"][0] == "layers"


@pytest.mark.parametrize(("tied", "embed_std"), [(True, 0.02), (False, 1.0)])
def test_initial_parameters_have_the_documented_scales(tied, embed_std):
    sizes = {"num_layers": 8, "embed_dim": 64, "ffn_dim": 128, "num_heads": 8, "head_dim": 16}
    model, _ = build(**sizes, tied_embeddings=tied)
    params = quick(model.init)(jax.random.key(0))
    block = params["layers"]["block_0"]
    reads, writes = 64**-0.5, (128 * 2 * 8) ** -0.5  # both kinds of writes have a fan in of 128
    deviations = [
        (params["embed"]["table"], embed_std),
        *((block["attention"][name], reads) for name in ("wq", "wk", "wv")),
        *((block["mlp"][name], reads) for name in ("w_up", "w_gate")),
        (block["attention"]["wo"], writes),
        (block["mlp"]["w_down"], writes),
    ]
    deviations += [] if tied else [(params["output"]["table"], 0.02)]
    for value, expected in deviations:
        # of n draws, the sample's deviation is off by 1/sqrt(2n): 2 % for the 1216 of a table
        assert np.std(value) == pytest.approx(expected, rel=0.1)
    assert np.all(block["mlp_norm"]["scale"] == 1)
    # no two layers start alike
    assert not np.array_equal(block["attention"]["wq"][0], block["attention"]["wq"][1])
