# SPDX-License-Identifier: Apache-2.0
"""Token embedding and output matrix.

Legend: B batch  T positions  D model width  V vocabulary
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn import init
from jaxlm.sharding.rules import constrain


class Embed(nn.Module):
    """Token ids (B, T) -> (B, T, D); its table is the output matrix too when tied."""

    vocab_size: int
    embed_dim: int
    is_tied: bool
    dtype: jnp.dtype

    def setup(self) -> None:
        shape = (self.vocab_size, self.embed_dim)
        self.table_VD = init.param(
            self, "table", init.embed(self.is_tied), shape, ("vocab", "embed")
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        # gathered over fsdp before the look-up: the partitioner would replicate its result instead
        table_VD = constrain(self.table_VD, ("vocab", None))
        # rounded after the look-up: the gradient of a frequent token is then a sum in f32
        return jnp.take(table_VD, tokens_BT, axis=0).astype(self.dtype)


class Output(nn.Module):
    """The matrix from hidden states to logits, (V, D) as the embedding's."""

    vocab_size: int
    embed_dim: int

    @nn.compact
    def __call__(self) -> jax.Array:
        shape = (self.vocab_size, self.embed_dim)
        return init.param(self, "table", init.output(), shape, ("vocab", "embed"))
