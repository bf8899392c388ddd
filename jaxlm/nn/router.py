# SPDX-License-Identifier: Apache-2.0
"""Which experts a token goes to, with what weights, and how evenly a batch is spread.

    score_e = softmax(logits)_e  or  sigmoid(logits)_e                       arXiv:2412.19437
    chosen  = the K largest of score_e + bias_e; at a tie the first
    weight  = score of the chosen / their sum (if normalised) * scale

The bias only chooses.  Gradients reach the logits by the weights of the chosen and by two losses:

    balance = sum over rows of n sum_e f_e P_e       1 per token when spread evenly; arXiv:2405.04434
              f_e = E / (K n) * choices of e,  P_e = mean of score_e / sum of scores, of a row
    z       = sum of logsumexp(logits)^2             arXiv:2202.08906

Both are sums over rows, so they are the same on every mesh and under gradient accumulation.

Legend: B batch  T positions  E experts  K experts of a token
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

CHOSEN = (
    "experts_chosen"  # what remat must store: computed again, a rounding could choose otherwise
)
TINY = 1e-20  # sigmoids may all be zero

Score = Literal["softmax", "sigmoid"]


class Choice(NamedTuple):
    """Where tokens go."""

    expert_BTK: jax.Array  # int32
    weight_BTK: jax.Array  # f32
    share_BTE: jax.Array  # f32: scores that add up to one


class RowSums(NamedTuple):
    """Sums over the counted positions of each row, f32: partial sums of a row add up."""

    choices_BE: jax.Array
    shares_BE: jax.Array
    tokens_B: jax.Array
    z_B: jax.Array


class Routing(NamedTuple):
    """Sums over the counted positions of a batch, f32; stacked over layers where a model has many."""

    choices_E: jax.Array  # tokens that chose each expert
    tokens: jax.Array
    balance: jax.Array
    z_squares: jax.Array


def choose(
    logits_BTE: jax.Array,
    bias_E: jax.Array | None,
    num_chosen: int,
    score: Score,
    is_normalized: bool,
    scale: float,
) -> Choice:
    """Experts and weights of every token.  Numerics: all in f32, as the logits must be."""
    if score == "softmax":
        score_BTE = share_BTE = jax.nn.softmax(logits_BTE, axis=-1)
    else:
        score_BTE = jax.nn.sigmoid(logits_BTE)
        share_BTE = score_BTE / (jnp.sum(score_BTE, axis=-1, keepdims=True) + TINY)
    rank_BTE = score_BTE if bias_E is None else score_BTE + bias_E[None, None]
    _, expert_BTK = jax.lax.top_k(jax.lax.stop_gradient(rank_BTE), num_chosen)
    expert_BTK = checkpoint_name(expert_BTK, CHOSEN)
    # a sum over one entry, not a gather: its gradient would be a scatter
    weight_BTK = jnp.sum(
        jnp.where(_is_chosen(expert_BTK, logits_BTE), score_BTE[:, :, None], 0), -1
    )
    if is_normalized:
        weight_BTK = weight_BTK / (jnp.sum(weight_BTK, axis=-1, keepdims=True) + TINY)
    return Choice(expert_BTK, weight_BTK * scale, share_BTE)


def _is_chosen(expert_BTK: jax.Array, logits_BTE: jax.Array) -> jax.Array:
    """(B, T, K, E), never stored: it is fused into the sum that reads it."""
    return expert_BTK[..., None] == jnp.arange(logits_BTE.shape[-1])[None, None, None]


def row_sums(logits_BTE: jax.Array, choice: Choice, counted_BT: jax.Array | None) -> RowSums:
    """What the losses need of each row; counted_BT: 0 or False for padding, None: all count."""
    B, T, _ = logits_BTE.shape
    counted_BT = jnp.ones((B, T)) if counted_BT is None else counted_BT.astype(jnp.float32)
    counted_BT1 = counted_BT[..., None]
    is_chosen_BTKE = _is_chosen(choice.expert_BTK, logits_BTE)
    z_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
    return RowSums(
        choices_BE=jnp.sum(jnp.where(is_chosen_BTKE, counted_BT1[..., None], 0), axis=(1, 2)),
        shares_BE=jnp.sum(choice.share_BTE * counted_BT1, axis=1),
        tokens_B=jnp.sum(counted_BT, axis=1),
        z_B=jnp.sum(z_BT * counted_BT, axis=1),
    )


def routing_of(sums: RowSums, num_chosen: int) -> Routing:
    """Balance and sums of a batch from those of its rows."""
    E = sums.choices_BE.shape[-1]
    # n sum_e f_e P_e with f = E / (K n) choices and P = shares / n: one n remains below
    dots_B = jnp.sum(sums.choices_BE * sums.shares_BE, axis=-1)
    balance_B = dots_B * E / (num_chosen * jnp.maximum(sums.tokens_B, 1.0))
    return Routing(
        choices_E=jnp.sum(sums.choices_BE, axis=0),
        tokens=jnp.sum(sums.tokens_B),
        balance=jnp.sum(balance_B),
        z_squares=jnp.sum(sums.z_B),
    )
