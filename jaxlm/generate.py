# SPDX-License-Identifier: Apache-2.0
"""Text from a model: prefill a cache with the prompt, then one token at a time.

Legend: B batch  T positions  D model width  V vocabulary
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxlm.core.types import Params
from jaxlm.model.transformer import Model

PREFILL_BUCKET = 32  # prompts are padded to a multiple, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; runtime values, so another setting compiles nothing."""

    temperature: float = 1.0  # 0: the likeliest token, always
    top_k: int = 0  # only the k likeliest; 0: all
    top_p: float = 1.0  # only the likeliest that together hold this probability, arXiv:1904.09751


def draw(
    rng: jax.Array,
    logits_BV: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
) -> jax.Array:
    """One token id per row, int32 (B,).  The three settings are traced scalars (see Sampling)."""
    V = logits_BV.shape[-1]
    scaled_BV = logits_BV / jnp.where(temperature > 0, temperature, 1.0)
    descending_BV = jnp.sort(scaled_BV, axis=-1, descending=True)
    kth_B1 = jnp.take(descending_BV, jnp.where(top_k > 0, jnp.minimum(top_k, V), V) - 1, axis=-1)[
        :, None
    ]
    probs_BV = jax.nn.softmax(jnp.where(descending_BV >= kth_B1, descending_BV, -jnp.inf), axis=-1)
    # a token stays while the likelier ones hold less than top_p: the first always does
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    kept_BV = jnp.where(before_BV < top_p, descending_BV, jnp.inf)
    floor_B1 = jnp.maximum(kth_B1, jnp.min(kept_BV, axis=-1, keepdims=True))
    sampled_B = jax.random.categorical(rng, jnp.where(scaled_BV >= floor_B1, scaled_BV, -jnp.inf))
    return jnp.where(temperature > 0, sampled_B, jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Generator:
    """Compiled prefill and decode steps of one model.

    num_ids: the tokenizer's; the embedding may have more rows, which are never drawn.
    """

    model: Model
    num_ids: int | None = None

    @functools.cached_property
    def _advance(self):
        def advance(params, tokens_BT, length_B, caches, offset_B, rng, settings):
            """Feeds tokens at offset; draws what follows the last real one of each row."""
            hidden_BTD, caches = self.model.apply_cached(params, tokens_BT, caches, offset_B)
            last_B1D = jnp.take_along_axis(hidden_BTD, (length_B - 1)[:, None, None], axis=1)
            logits_BV = self.model.logits(params, last_B1D)[:, 0]
            if self.num_ids is not None:
                is_id_V = jnp.arange(logits_BV.shape[-1]) < self.num_ids
                logits_BV = jnp.where(is_id_V, logits_BV, -jnp.inf)
            return draw(rng, logits_BV, *settings), caches

        return jax.jit(advance, donate_argnames="caches")

    def stream(
        self,
        params: Params,
        prompt: list[int],
        num_tokens: int,
        sampling: Sampling,
        rng: jax.Array,
        stop_id: int | None = None,
    ) -> Iterator[int]:
        """Yields up to `num_tokens` ids that continue the prompt; ends early at `stop_id`.

        Raises ValueError for an empty prompt.
        """
        if not prompt:
            raise ValueError("a prompt needs at least one token; begin with the separator")
        padded = prompt + [0] * (-len(prompt) % PREFILL_BUCKET)
        num_slots = len(padded) + num_tokens
        caches = self.model.init_cache(1, num_slots + -num_slots % PREFILL_BUCKET)
        settings = (
            jnp.float32(sampling.temperature),
            jnp.int32(sampling.top_k),
            # a smaller one would become 0, which leaves no token
            jnp.float32(max(sampling.top_p, jnp.finfo(jnp.float32).tiny)),
        )
        # slots that padding filled are overwritten, or lie after every query that counts
        feed, length, offset = jnp.array([padded]), len(prompt), 0
        for i in range(num_tokens):
            token_B, caches = self._advance(
                params, feed, jnp.array([length]), caches, jnp.array([offset]),
                jax.random.fold_in(rng, i), settings,
            )  # fmt: skip
            token = int(token_B[0])
            if token == stop_id:
                return
            yield token
            feed, offset, length = token_B[:, None], offset + length, 1
