# SPDX-License-Identifier: Apache-2.0
"""Next-token loss as sums and counts: whoever adds up last divides, once.

    nats   = sum_bt w * (logsumexp(z) - z[target])
    z_loss = sum_bt w * logsumexp(z)^2                      arXiv:2204.02311 section 5

Legend: B batch  T positions  D model width  V vocabulary
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.types import Batch, Params
from jaxlm.model.transformer import Model


class LossSums(NamedTuple):
    """Sums over the positions of a batch, f32 scalars.  Divide by `tokens` after the last sum."""

    nats: jax.Array  # cross-entropy
    z_squares: jax.Array  # squared log-normalisers, for the z-loss
    correct: jax.Array  # positions whose most likely token was the target
    tokens: jax.Array  # sum of the weights

    @classmethod
    def zeros(cls) -> "LossSums":
        return cls(*jnp.zeros(4))


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> LossSums:
    """Weighted next-token sums.

    Shapes:   logits f32; targets int32 in [0, V); weights f32, 0 = position ignored
    Numerics: logsumexp in f32 of f32 logits; bf16 values near ln V = 11 would be 1/16 apart
    """
    lse_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_logit_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    is_correct_BT = target_logit_BT >= jnp.max(logits_BTV, axis=-1)
    return LossSums(
        nats=jnp.sum(weights_BT * (lse_BT - target_logit_BT)),
        z_squares=jnp.sum(weights_BT * jnp.square(lse_BT)),
        correct=jnp.sum(weights_BT * is_correct_BT),
        tokens=jnp.sum(weights_BT),
    )


def batch_loss(model: Model, params: Params, batch: Batch) -> LossSums:
    """The model's sums on one batch of packed rows."""
    hidden_BTD = model.apply(params, batch["tokens"], batch["positions"], batch["segment_ids"])
    logits_BTV = model.logits(params, hidden_BTD)
    return cross_entropy(logits_BTV, batch["targets"], batch["weights"])
