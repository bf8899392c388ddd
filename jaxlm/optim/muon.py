# SPDX-License-Identifier: Apache-2.0
"""Muon: the momentum of every hidden matrix, replaced by the nearest orthogonal matrix.

Five steps of X <- (a I + b G + c G^2) X, with G = X X^T, bring all singular values near 1 (into
0.7 ... 1.2).  Source: Keller Jordan et al., kellerjordan.github.io/posts/muon (2024); its
scale sqrt(max(1, out/in)) is kept too.

Legend: L layers (a batch of independent matrices)  M the shorter side  N the longer side
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.optim.groups import Axes, dimension_numbers

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the steepest slope at zero that stays near 1
EPS = 1e-7  # an all-zero momentum stays zero


# (work, x, logical axes of x, dimensions that work needs whole) -> work(x)
Spread = Callable[[Callable[[jax.Array], jax.Array], jax.Array, Axes, tuple[int, ...]], jax.Array]


def scale_by_muon(
    momentum: jax.Array, steps: int, axes: Any, spread: Spread
) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised; `axes` is shaped like the updates.

    spread:  does work on layers where they are whole, as sharding/by_layers.py does on a mesh

    The momentum is a plain sum: a moving average differs by a factor, which orthogonalising drops.
    """

    def orthogonalized(update: jax.Array, axes: Axes) -> jax.Array:
        work = partial(_orthogonalize, axes=axes, steps=steps)
        return spread(work, update, axes, sum(dimension_numbers(axes), ()))

    def all_orthogonalized(updates: Any, _: Any) -> Any:
        return jax.tree.map(orthogonalized, updates, axes)

    return optax.chain(optax.trace(momentum, nesterov=True), optax.stateless(all_orthogonalized))


def _orthogonalize(update: jax.Array, axes: Axes, steps: int) -> jax.Array:
    """One parameter, of any rank, layer by layer; scaled by sqrt(max(1, out/in))."""
    inputs, outputs = dimension_numbers(axes)
    layers = tuple(dim for dim in range(update.ndim) if dim not in inputs + outputs)
    order = layers + inputs + outputs
    fan_in = math.prod(update.shape[dim] for dim in inputs)
    fan_out = math.prod(update.shape[dim] for dim in outputs)
    ordered = update.transpose(order)
    x = newton_schulz(ordered.reshape(-1, fan_in, fan_out), steps)
    x = x * math.sqrt(max(1, fan_out / fan_in))
    back = sorted(range(update.ndim), key=order.__getitem__)
    return x.reshape(ordered.shape).transpose(back)


def newton_schulz(x: jax.Array, steps: int) -> jax.Array:
    """Orthogonalises each matrix of a batch (L, rows, columns); same shape, f32.

    Cost: in units of 2 M^2 N, for r = N / M, iterating on X takes 10 + 5/r and iterating on G
    2 + 17/r, both to the same polynomial of the first G: equal at r = 1.5.
    Numerics: f32 products.  Rounding in G's small eigenvalues grows 12-fold a step, to 1e-3 in
    f32; single-pass bf16 or tf32 would destroy them.
    """
    if x.shape[1] > x.shape[2]:
        return newton_schulz(x.swapaxes(1, 2), steps).swapaxes(1, 2)
    with jax.default_matmul_precision("highest"):
        x_LMN = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + EPS)
        if x.shape[2] < 1.5 * x.shape[1]:
            for _ in range(steps):
                x_LMN = _polynomial(x_LMN @ x_LMN.swapaxes(1, 2)) @ x_LMN
            return x_LMN
        gram_LMM = x_LMN @ x_LMN.swapaxes(1, 2)
        product_LMM = _polynomial(gram_LMM)
        factor_LMM = product_LMM
        for _ in range(steps - 1):  # all these are polynomials of one G, so they commute
            gram_LMM = factor_LMM @ gram_LMM @ factor_LMM
            factor_LMM = _polynomial(gram_LMM)
            product_LMM = factor_LMM @ product_LMM
        return product_LMM @ x_LMN


def _polynomial(gram_LMM: jax.Array) -> jax.Array:
    a, b, c = COEFFICIENTS
    eye_1MM = jnp.eye(gram_LMM.shape[1])[None]
    return a * eye_1MM + b * gram_LMM + c * (gram_LMM @ gram_LMM)
