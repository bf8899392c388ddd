# SPDX-License-Identifier: Apache-2.0
"""Adafactor: Adam's second moment, kept as one row and one column per matrix.  No first moment.

    b2_t = min(b2, 1 - t^-0.8)          R, C <- moving averages of g^2 + eps^2 by row, by column
    u    = g / sqrt(R C / mean(R))      then u / max(1, rms(u))

Source: arXiv:1804.04235, sections 3 to 7; the bound on b2 is arXiv:2106.04560's.  There is no
scaling by the parameter's size, so learning rates mean what they mean to AdamW.  Each layer of a
stacked parameter is a matrix of its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.optim.groups import dimension_numbers, own_dims


class AdafactorState(NamedTuple):
    updates: jax.Array  # how many are done, int32
    rows: Any  # mean of g^2 over the output dimensions, kept as size 1; a vector's own g^2
    columns: Any  # mean of g^2 over the input dimensions, kept as size 1; a vector's own g^2


def scale_by_adafactor(b2: jax.Array, eps: jax.Array, axes: Any) -> optax.GradientTransformation:
    """Gradients over their factored root mean square; `axes` is shaped like the parameters."""

    def row_means(squares: Any) -> Any:
        return jax.tree.map(
            lambda s, a: s.mean(dimension_numbers(a)[1], keepdims=True), squares, axes
        )

    def column_means(squares: Any) -> Any:
        return jax.tree.map(
            lambda s, a: s.mean(dimension_numbers(a)[0], keepdims=True), squares, axes
        )

    def init(params: Any) -> AdafactorState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdafactorState(jnp.zeros([], jnp.int32), row_means(zeros), column_means(zeros))

    def update(grads: Any, state: AdafactorState, params: Any = None) -> tuple[Any, AdafactorState]:
        del params
        number = optax.safe_increment(state.updates)
        decay = jnp.minimum(b2, 1 - number.astype(jnp.float32) ** -0.8)
        squares = jax.tree.map(lambda g: g * g + eps * eps, grads)
        rows = optax.tree.update_moment(row_means(squares), state.rows, decay, 1)
        columns = optax.tree.update_moment(column_means(squares), state.columns, decay, 1)

        def scaled(grad: jax.Array, row: jax.Array, column: jax.Array, axes: Any) -> jax.Array:
            inputs, _ = dimension_numbers(axes)
            relative = row / row.mean(inputs, keepdims=True)
            u = grad * jax.lax.rsqrt(relative) * jax.lax.rsqrt(column)
            rms = jnp.sqrt(jnp.mean(u * u, axis=own_dims(axes), keepdims=True))
            return u / jnp.maximum(1, rms)

        updates = jax.tree.map(scaled, grads, rows, columns, axes)
        return updates, AdafactorState(number, rows, columns)

    return optax.GradientTransformation(init, update)
