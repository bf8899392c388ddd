# SPDX-License-Identifier: Apache-2.0
"""Token embedding and output matrix.

Legend: B batch  T positions  D model width  V vocabulary
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn import init
from jaxlm.sharding.rules import ROWS, constrain, num_parts, spec


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
        return _rows(self.table_VD, tokens_BT, self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(table_VD: jax.Array, tokens_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The tokens' rows, rounded.  Its gradient is a sum in f32, however often a token comes.

    A split table is rounded and gathered before the look-up: half the bytes, and the partitioner
    would replicate the result of the look-up instead.
    """
    if num_parts(*spec(("vocab", "embed"))[1]) > 1:
        table_VD = constrain(table_VD.astype(dtype), ("vocab", None))
    return _look_up(tokens_BT, table_VD).astype(dtype)


def _look_up(tokens_BT: jax.Array, table_VD: jax.Array) -> jax.Array:
    return jnp.take(table_VD, tokens_BT, axis=0)


def _rows_fwd(table_VD: jax.Array, tokens_BT: jax.Array, dtype: jnp.dtype) -> tuple[Any, Any]:
    return _rows(table_VD, tokens_BT, dtype), (table_VD, tokens_BT)


def _rows_bwd(dtype: jnp.dtype, residuals: Any, dy_BTD: jax.Array) -> tuple[jax.Array, None]:
    table_VD, tokens_BT = residuals
    dy_BTD = _split_along_width(dy_BTD)
    transposed = jax.linear_transpose(partial(_look_up, tokens_BT), table_VD)
    (d_VD,) = transposed(dy_BTD.astype(table_VD.dtype))
    return constrain(d_VD, ("vocab", "embed")), None


def _split_along_width(dy_BTD: jax.Array) -> jax.Array:
    """All rows, of which a device holds the columns that its part of a split table has.

    An all-to-all of rounded rows, and then every device sums its part alone.  Summed where the rows
    are, each would hold a whole table's gradient and send it.  Rows of which a device has a part of
    the positions are left to the partitioner: it has no such exchange over two dimensions.
    """
    rows, positions = (tuple(jax.tree.leaves(axes)) for axes in ROWS)
    width = spec(("vocab", "embed"))[1]
    if num_parts(*width) == 1 or num_parts(*positions) > 1:
        return dy_BTD
    rest = tuple(axis for axis in rows if axis not in width)
    return jax.lax.with_sharding_constraint(dy_BTD, jax.P(rest, None, width))


_rows.defvjp(_rows_fwd, _rows_bwd)


class Output(nn.Module):
    """The matrix from hidden states to logits, (V, D) as the embedding's."""

    vocab_size: int
    embed_dim: int

    @nn.compact
    def __call__(self) -> jax.Array:
        shape = (self.vocab_size, self.embed_dim)
        return init.param(self, "table", init.output(), shape, ("vocab", "embed"))
