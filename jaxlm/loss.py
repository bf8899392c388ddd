# SPDX-License-Identifier: Apache-2.0
"""Next-token loss as sums and counts: whoever adds up last divides, once.

    nats      = sum_bt w * (logsumexp(z) - z[target])
    z_squares = sum_bt w * logsumexp(z)^2
    loss      = nats + z_loss * z_squares                   arXiv:2204.02311 section 5
                + the routers' losses, summed over layers   nn/router.py

Legend: B batch  T positions  D model width  V vocabulary  L layers with experts
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.types import Batch, Params
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Model
from jaxlm.nn import kernels
from jaxlm.nn.router import Routing


class LossSums(NamedTuple):
    """Sums over the positions of a batch, f32 scalars.  Divide by `tokens` after the last sum."""

    nats: jax.Array  # cross-entropy
    z_squares: jax.Array  # squared log-normalisers, for the z-loss
    correct: jax.Array  # positions whose most likely token was the target
    tokens: jax.Array  # sum of the weights
    loss: jax.Array  # what is minimised: the only one to differentiate
    routing: Routing | None = None  # of a model with experts, (L, ...)

    @classmethod
    def zeros(cls, config: ModelConfig) -> "LossSums":
        """Shaped like the sums of this model's batches."""
        sums = cls(*jnp.zeros(5))
        if not (L := config.num_sparse_layers):
            return sums
        of_layers = [jnp.zeros(L)] * 3
        return sums._replace(routing=Routing(jnp.zeros((L, config.num_experts)), *of_layers))


def cross_entropy(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    z_loss: jax.Array | float = 0.0,
) -> LossSums:
    """Weighted next-token sums of whole logits.

    Shapes:   logits f32; targets int32 in [0, V); weights f32, 0 = position ignored
    Numerics: logsumexp in f32 of f32 logits; bf16 values near ln V = 11 would be 1/16 apart
    """
    lse_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_logit_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    is_correct_BT = target_logit_BT >= jnp.max(logits_BTV, axis=-1)
    nats = jnp.sum(weights_BT * (lse_BT - target_logit_BT))
    z_squares = jnp.sum(weights_BT * jnp.square(lse_BT))
    return LossSums(
        nats=nats,
        z_squares=z_squares,
        correct=jnp.sum(weights_BT * is_correct_BT),
        tokens=jnp.sum(weights_BT),
        loss=nats + z_loss * z_squares,
    )


def batch_loss(
    model: Model, params: Params, batch: Batch, z_loss: jax.Array | float = 0.0
) -> LossSums:
    """The model's sums on one batch of packed rows.

    Where there is a kernel, or where the logits would fill the memory, they are never whole.
    """
    inputs = batch["tokens"], batch["positions"], batch["segment_ids"]
    hidden_BTD, routing = model.apply_routed(params, *inputs)
    sums = _hidden_loss(model, params, hidden_BTD, batch, z_loss)
    if routing is None:
        return sums
    c = model.config
    balance, z_squares = jnp.sum(routing.balance), jnp.sum(routing.z_squares)
    loss = sums.loss + c.router_balance_loss * balance + c.router_z_loss * z_squares
    return sums._replace(loss=loss, routing=routing)


def _hidden_loss(
    model: Model, params: Params, hidden_BTD: jax.Array, batch: Batch, z_loss: jax.Array | float
) -> LossSums:
    targets_BT, weights_BT = batch["targets"], batch["weights"]
    if not kernels.is_loss_fused(model.config.loss_impl, targets_BT.size, model.config.vocab_size):
        return cross_entropy(model.logits(params, hidden_BTD), targets_BT, weights_BT, z_loss)
    found = kernels.linear_cross_entropy(
        hidden_BTD,
        model.output_matrix(params),
        targets_BT,
        weights_BT,
        softcap=model.config.logit_softcap,
        z_loss=z_loss,
        impl=model.config.loss_impl,
    )
    return LossSums(found.nats, found.z_squares, found.correct, found.count, found.loss)
