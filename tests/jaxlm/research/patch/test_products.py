# SPDX-License-Identifier: Apache-2.0
"""FLOPs of traced programs, beside counts by hand and our own accounting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import RunConfig, resolve
from jaxlm.data.config import DataConfig, TokenizerConfig
from jaxlm.model.accounting import mean_keys
from jaxlm.model.config import ModelConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.research.patch.products import product_flops
from jaxlm.sharding.mesh import make_mesh
from jaxlm.train.config import TrainConfig
from jaxlm.train.setup import abstract_batch, build_trainer, on_mesh

X, W = jnp.ones((4, 8)), jnp.ones((8, 8))
EXPERTS = jnp.ones((3, 8, 8))
PRODUCT = 2 * 4 * 8 * 8


def loop(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ W), x)


PROGRAMS = {
    "elementwise": (lambda x: jnp.tanh(x) * x, 0),
    "two": (lambda x: x @ W @ W, 2),
    "batched": (lambda x: jnp.einsum("ij,kjl->kil", x, jnp.ones((3, 8, 8))), 3),
    "a call": (jax.jit(loop), 5),
    "a loop in a loop": (lambda x: jax.lax.scan(lambda x, _: (loop(x), 0), x, length=3)[0], 15),
    "the dearest branch": (
        lambda x: jax.lax.cond(x[0, 0] > 0, loop, lambda x: x @ W, x), 5,
    ),
    "forward and backward": (jax.grad(lambda x: (x @ W).sum()), 2),
    "experts": (lambda x: jax.lax.ragged_dot(x, EXPERTS, jnp.array([1, 0, 3])), 1),
    "gradients of rows and experts": (
        lambda x: jax.grad(
            lambda x, w: jax.lax.ragged_dot(x, w, jnp.array([1, 0, 3])).sum(), argnums=(0, 1)
        )(x, EXPERTS), 3,
    ),
    "computed again": (jax.grad(jax.checkpoint(lambda x: jnp.tanh(x @ W).sum())), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_products_are_counted_once_for_every_time_that_they_run(name: str) -> None:
    program, times = PROGRAMS[name]
    assert product_flops(jax.make_jaxpr(program)(X).jaxpr) == times * PRODUCT


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_an_update_has_the_flops_of_our_accounting(num_micro_batches: int) -> None:
    """Beside masked scores, which are computed, too."""
    T = 16
    config = RunConfig(
        model=ModelConfig(
            vocab_size=320, num_layers=3, embed_dim=32, num_heads=2, ffn_dim=64,
            attention_impl="reference", loss_impl="reference",
        ),
        data=DataConfig(tokenizer=TokenizerConfig(vocab_size=320), seq_len=T, batch_size=4),
        optim=OptimConfig(peak_lr=1e-3),
        train=TrainConfig(num_steps=4, num_micro_batches=num_micro_batches, probe_every=None),
    )  # fmt: skip
    trainer = build_trainer(
        config, np.ones(320, np.int32), make_mesh(config.mesh, jax.devices()[:1])
    )
    batch = abstract_batch(config, trainer.mesh, 4)
    with on_mesh(trainer.mesh, trainer.rules):
        traced = trainer.step.trace(trainer.abstract_state, batch)
    resolved = resolve(config, 1)
    masked = 3 * 3 * 4 * (T - mean_keys(T, None)) * 32
    due = (resolved.train_flops_per_token + masked) * resolved.tokens_per_step
    assert product_flops(traced.jaxpr.jaxpr) == pytest.approx(due, rel=0.02)
