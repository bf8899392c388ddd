# SPDX-License-Identifier: Apache-2.0
"""Tokens to experts and back: rows sorted by expert, none dropped, by gathers in both directions.

    assignment a = (token r, its choice k), a = r K + k
    order_A  the assignments, those of expert 0 first;   place_A  its inverse

Legend: R tokens  K experts of a token  A = R K assignments  E experts  D width
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.nn.router import CHOSEN


class Plan(NamedTuple):
    """Assignments in the order of experts.  Those of no expert come last."""

    order_A: jax.Array
    place_A: jax.Array
    sizes_E: jax.Array  # int32, assignments of each expert


def make_plan(expert_RK: jax.Array, num_experts: int) -> Plan:
    """expert_RK: int32 below E, or E for an assignment that no expert gets."""
    expert_A = expert_RK.reshape(-1)
    order_A = checkpoint_name(jnp.argsort(expert_A, stable=True).astype(jnp.int32), CHOSEN)
    place_A = checkpoint_name(inverse(order_A), CHOSEN)
    borders = jnp.arange(num_experts + 1)
    # one comparison per border of experts: a bin count would be a scatter
    stop_E = jnp.searchsorted(expert_A[order_A], borders, side="left").astype(jnp.int32)
    return Plan(order_A, place_A, jnp.diff(stop_E))


def inverse(order_A: jax.Array) -> jax.Array:
    """The inverse of a permutation."""
    index_A = jnp.arange(len(order_A), dtype=jnp.int32)
    return jnp.zeros_like(order_A).at[order_A].set(index_A, unique_indices=True)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def spread(x_RD: jax.Array, plan: Plan, num_chosen: int) -> jax.Array:
    """(A, D): the token of every assignment, in the order of experts."""
    return x_RD[plan.order_A // num_chosen]


def _spread_bwd(num_chosen: int, plan: Plan, dy_AD: jax.Array) -> tuple[jax.Array, None]:
    """Every token's assignments, summed in f32: a gather where the transpose is a scatter."""
    A, D = dy_AD.shape
    dy_RKD = dy_AD[plan.place_A].reshape(A // num_chosen, num_chosen, D)
    return jnp.sum(dy_RKD, axis=1, dtype=jnp.float32).astype(dy_AD.dtype), None


spread.defvjp(lambda x, plan, k: (spread(x, plan, k), plan), _spread_bwd)


@jax.custom_vjp
def permuted(y_AD: jax.Array, order_A: jax.Array, place_A: jax.Array) -> jax.Array:
    """y[order], where `place` is the inverse of `order`: so the gradient is a gather too."""
    return y_AD[order_A]


permuted.defvjp(
    lambda y, order, place: (permuted(y, order, place), (order, place)),
    lambda saved, dy: (dy[saved[1]], None, None),
)


def collect(y_AD: jax.Array, plan: Plan, num_chosen: int) -> jax.Array:
    """(R, D) in y's dtype: every token's rows, summed in f32."""
    y_RKD = permuted(y_AD, plan.place_A, plan.order_A).reshape(-1, num_chosen, y_AD.shape[-1])
    return jnp.sum(y_RKD, axis=1, dtype=jnp.float32).astype(y_AD.dtype)
