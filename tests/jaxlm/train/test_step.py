# SPDX-License-Identifier: Apache-2.0
"""The update: one division, one compilation, the same on every mesh, refused when not finite."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxlm.train.setup import on_mesh
from tests.jaxlm.train.conftest import CONFIG, changed

slow = partial(pytest.param, marks=pytest.mark.slow)
MESHES = [  # test_strategies.py compares five updates on meshes each time
    {"data": 8},
    {"fsdp": 8},
    {"fsdp": 4, "model": 2},
    {"data": 2, "fsdp": 2, "model": 2},
]


def run_steps(trainer, batches):
    """(losses, final state) of a fresh state."""
    losses = []
    with on_mesh(trainer.mesh, trainer.rules):
        state = trainer.init(jax.random.key(0))
        for batch in batches:
            state, metrics = trainer.step(state, batch)
            losses.append(float(metrics["train/loss_nats"]))
    return np.array(losses), state


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_twenty_updates_agree_on_every_mesh(make_trainer, random_batch, sizes):
    """Bound: sums in another order, over 20 updates; f32 has 6e-8, measured spread 5e-7."""
    config = changed("train", num_steps=20, probe_every=20)  # a mesh is looked into, too
    batches = [random_batch(i % 2) for i in range(20)]
    want, _ = run_steps(make_trainer(config), batches)
    got, _ = run_steps(make_trainer(config, **sizes), batches)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert want[-1] < want[0] - 0.1


@pytest.mark.parametrize("optimizer", ["muon", slow("adafactor"), slow("schedule_free")])
def test_optimizers_that_mix_entries_agree_on_a_mesh(make_trainer, random_batch, optimizer):
    config = changed("optim", name=optimizer, schedule="constant")
    batches = [random_batch(i) for i in range(4)]
    want, _ = run_steps(make_trainer(config), batches)
    got, _ = run_steps(make_trainer(config, fsdp=4, model=2), batches)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("num_micro_batches", [slow(2), 4, slow(16)])
def test_accumulation_divides_once_by_the_tokens_of_the_whole_batch(
    make_trainer, random_batch, num_micro_batches
):
    """Micro-batches hold unequal numbers of tokens here: a mean of means would differ by percents."""
    batches = [random_batch(i) for i in range(3)]
    _, whole = run_steps(make_trainer(), batches)
    config = changed("train", num_micro_batches=num_micro_batches)
    _, parts = run_steps(make_trainer(config), batches)
    for got, want in zip(jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-6)  # Adam's 1/sqrt(v) of f32 noise


def test_accumulation_composes_with_a_mesh(make_trainer, random_batch):
    batches = [random_batch(i) for i in range(3)]
    want, _ = run_steps(make_trainer(), batches)
    config = changed("train", num_micro_batches=2)
    got, _ = run_steps(make_trainer(config, fsdp=4, model=2), batches)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_non_finite_update_leaves_the_state_as_it_was(make_trainer, random_batch, poison):
    trainer, bad = make_trainer(), random_batch(1)
    bad["weights"][0, 0] = poison
    with on_mesh(trainer.mesh, trainer.rules):
        state, _ = trainer.step(trainer.init(jax.random.key(0)), random_batch(0))
        before = jax.device_get(state)
        state, metrics = trainer.step(state, bad)
        after = jax.device_get(state)
    assert not metrics["update/applied"]
    for a, b in zip(jax.tree.leaves(after[1:]), jax.tree.leaves(before[1:]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert after.step == before.step + 1  # the batch is consumed: batch(step) stays in line


def test_other_scalars_recompile_nothing(make_trainer, random_batch):
    trainer = make_trainer()
    trainer.step.clear_cache()
    with on_mesh(trainer.mesh, trainer.rules):
        state = trainer.init(jax.random.key(0))
        losses = []
        for peak_lr in (1e-3, 1e-2):
            hparams = state.hparams | {"peak_lr": np.float32(peak_lr), "num_steps": np.float32(50)}
            state, metrics = trainer.step(state._replace(hparams=hparams), random_batch(0))
            losses.append(float(metrics["optim/lr"]))
    assert trainer.step._cache_size() == 1
    assert losses[1] == pytest.approx(20 * losses[0])  # ten times the peak, second warmup step


def test_a_batch_of_nothing_but_padding_changes_nothing_but_decay(make_trainer, random_batch):
    trainer, empty = make_trainer(changed("optim", weight_decay=0.0)), random_batch(0)
    empty["weights"] = np.zeros_like(empty["weights"])
    with on_mesh(trainer.mesh, trainer.rules):
        state = trainer.init(jax.random.key(0))
        before = jax.device_get(state.params)
        state, metrics = trainer.step(state, empty)
    assert metrics["train/loss_nats"] == 0 and metrics["update/applied"]
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameters_and_moments_are_split_as_the_rules_say(make_trainer):
    trainer = make_trainer(fsdp=4, model=2)
    state = trainer.abstract_state
    wq = state.params["layers"]["block_0"]["attention"]["wq"].sharding.spec
    assert tuple(wq) == ("pipeline", ("fsdp", "expert", "context"), "model", None)
    moments = [
        leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "wq" in jax.tree_util.keystr(path)
    ]
    assert len(moments) == 2 and all(spec == wq for spec in moments)
    assert CONFIG.model.embed_dim % 4 == 0
