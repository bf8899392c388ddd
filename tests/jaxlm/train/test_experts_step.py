# SPDX-License-Identifier: Apache-2.0
"""Updates of a model with experts: the same on every mesh and in parts, balanced, and resumable.

Legend: L layers  E experts
"""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from jaxlm.optim.build import eval_params
from jaxlm.train.checkpoint import Checkpointer, Identity, restore
from jaxlm.train.setup import on_mesh
from tests.jaxlm.train.conftest import CONFIG

MODEL = dataclasses.replace(
    CONFIG.model,
    num_experts=8,
    expert_ffn_dim=16,
    num_shared_experts=1,
    num_dense_layers=1,
    router_score="sigmoid",
    router_bias_rate=0.01,
)
SPARSE = dataclasses.replace(CONFIG, model=MODEL)
MESHES = {
    "expert_fsdp": {"expert": 4, "fsdp": 2},
    "expert_model": {"expert": 4, "model": 2},
    "data_expert": {"data": 2, "expert": 4},
    "fsdp_model": {"fsdp": 4, "model": 2},
}


def updates(trainer, batches, state=None):
    """(metrics of every update, final state)."""
    rows = []
    with on_mesh(trainer.mesh):
        state = trainer.init(jax.random.key(0)) if state is None else state
        for batch in batches:
            state, metrics = trainer.step(state, batch)
            rows.append(jax.device_get(metrics))
    return rows, jax.device_get(state)


def assert_same(found, expected, rtol):
    """Metrics to `rtol`; parameters to `rtol` of the largest entry, after Adam's division."""
    for got, want in zip(found[0], expected[0], strict=True):
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=rtol, atol=1e-7, err_msg=name)
    named = jax.tree_util.tree_leaves_with_path(expected[1].params)
    for (path, want), got in zip(named, jax.tree.leaves(found[1].params), strict=True):
        scale = np.max(np.abs(want)) + 1e-9
        np.testing.assert_allclose(
            got, want, atol=rtol * scale, rtol=0, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.slow  # nn/test_experts.py looks at the layer on meshes each time
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_five_updates_agree_on_every_mesh(make_trainer, random_batch, mesh, num_micro_batches):
    """With remat in half of the cases, on one device too: it chooses no expert again."""
    train = dataclasses.replace(CONFIG.train, num_micro_batches=num_micro_batches)
    optim = dataclasses.replace(CONFIG.optim, eps=1e-3)  # no division by rounding errors
    model = dataclasses.replace(MODEL, remat="full" if num_micro_batches == 2 else "none")
    config = dataclasses.replace(SPARSE, train=train, optim=optim, model=model)
    batches = [random_batch(i) for i in range(5)]
    want = updates(make_trainer(config), batches)
    assert_same(updates(make_trainer(config, **MESHES[mesh]), batches), want, rtol=1e-5)
    assert np.any(want[1].params["layers"]["block_0"]["moe"]["bias"] != 0)


def biases(params):
    return np.asarray(params["layers"]["block_0"]["moe"]["bias"])


def small(**model):
    """One layer, to compile soon."""
    model = {"num_layers": 1, "num_dense_layers": 0} | model
    return dataclasses.replace(SPARSE, model=dataclasses.replace(MODEL, **model))


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "optimizer", [slow("muon"), slow("schedule_free"), "adamw", slow("lion"), slow("adafactor")]
)
def test_no_optimizer_touches_the_biases(make_trainer, random_batch, optimizer):
    """After one update they are the rate up or down, as evaluated too."""
    optim = dataclasses.replace(CONFIG.optim, name=optimizer, schedule="constant")
    trainer = make_trainer(dataclasses.replace(small(), optim=optim))
    (metrics,), state = updates(trainer, [random_batch(0)])
    tokens_LE = metrics["router/expert_tokens"]
    moved = 0.01 * np.sign(tokens_LE.mean(1, keepdims=True) - tokens_LE)
    assert tokens_LE.sum() == 2 * (random_batch(0)["segment_ids"] > 0).sum()
    np.testing.assert_array_equal(biases(state.params), moved.astype(np.float32))
    found = eval_params(optim, state.opt_state, state.params)
    np.testing.assert_array_equal(biases(found), biases(state.params))


BALANCES = {  # model, peak learning rate, mean load of the busiest expert at the end
    "bias": ({"router_bias_rate": 0.02}, 1e-4, (1.0, 2.3)),
    "loss": ({"router_balance_loss": 30.0}, 1e-3, (1.0, 2.3)),
    "nothing": ({}, 1e-3, (3.5, 4.0)),
}


@pytest.mark.parametrize(
    ("balance", "peak_lr", "bounds"),
    [(pytest.param if name == "bias" else slow)(*case, id=name) for name, case in BALANCES.items()],
)
def test_bias_or_loss_brings_a_lopsided_router_into_balance(
    make_trainer, random_batch, balance, peak_lr, bounds
):
    """Two of eight experts get all tokens, four times the mean, and keep them by themselves."""
    config = small(**{"router_bias_rate": 0.0, "router_balance_loss": 0.0} | balance)
    optim = dataclasses.replace(CONFIG.optim, schedule="constant", peak_lr=peak_lr)
    trainer = make_trainer(dataclasses.replace(config, optim=optim))
    with on_mesh(trainer.mesh):
        state = trainer.init(jax.random.key(0))
    state.params["embed"]["table"] += 0.05  # what all tokens share,
    router = state.params["layers"]["block_0"]["moe"]["router"]
    router += np.where(np.arange(8) < 2, 0.1, 0.0)[None, None]  # and two experts look for
    state.params["layers"]["block_0"]["moe"]["router"] = router
    rows, _ = updates(trainer, [random_batch(i) for i in range(40)], state)
    loads = [row["router/max_load"] for row in rows]
    assert loads[0] > 3.5
    assert bounds[0] <= np.mean(loads[-10:]) <= bounds[1], loads


@pytest.mark.slow
def test_a_refused_update_moves_no_bias(make_trainer, random_batch):
    trainer, bad = make_trainer(small()), random_batch(1)
    _, before = updates(trainer, [random_batch(0)])
    bad["weights"][0, 0] = np.nan
    rows, after = updates(trainer, [random_batch(0), bad])
    assert not rows[-1]["update/applied"]
    np.testing.assert_array_equal(biases(after.params), biases(before.params))


def test_a_resumed_run_has_the_same_bits_biases_included(make_trainer, random_batch, tmp_path):
    trainer, batches = make_trainer(small()), [random_batch(i) for i in range(4)]
    rows, whole = updates(trainer, batches)
    _, half = updates(trainer, batches[:2])
    checkpointer = Checkpointer(tmp_path, keep=2, identity=Identity("config", "data"))
    checkpointer.save(2, half)
    checkpointer.close()
    resumed_rows, resumed = updates(
        trainer, batches[2:], restore(tmp_path, 2, trainer.abstract_state)
    )
    jax.tree.map(np.testing.assert_array_equal, (resumed_rows, resumed), (rows[2:], whole))
    assert np.any(biases(half.params) != biases(whole.params))


@pytest.mark.slow
def test_members_of_one_program_train_as_each_alone(make_trainer, random_batch):
    """vmap over states and batches, as jaxlm/research/together.py does."""
    trainer, keys = make_trainer(small()), [jax.random.key(i) for i in range(2)]
    with on_mesh(trainer.mesh):
        states = [trainer.init(key) for key in keys]
        alone = [trainer.step(trainer.init(key), random_batch(i)) for i, key in enumerate(keys)]
        stack = lambda *leaves: np.stack(leaves)
        batches = jax.tree.map(stack, random_batch(0), random_batch(1))
        stacked = jax.tree.map(stack, *jax.device_get(states))
        together = jax.jit(jax.vmap(trainer.step))(stacked, batches)
    for i, (state, metrics) in enumerate(jax.device_get(alone)):
        found = jax.tree.map(lambda x, i=i: x[i], jax.device_get(together))
        assert_same(([found[1]], found[0]), ([metrics], state), rtol=1e-4)


@pytest.mark.parametrize("remat", [slow("dots"), slow("block_inputs"), "full"])
def test_what_is_computed_again_chooses_no_expert_again(make_trainer, random_batch, remat):
    """Rounding might choose another one, and gradients would be of another function."""
    trainer = make_trainer(small(remat=remat), expert=2, fsdp=2)
    with on_mesh(trainer.mesh):
        jaxpr = str(jax.make_jaxpr(trainer.step)(trainer.abstract_state, random_batch(0)))
    assert jaxpr.count("top_k[") == jaxpr.count("= sort[") == 1
