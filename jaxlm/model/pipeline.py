# SPDX-License-Identifier: Apache-2.0
"""Layers in stages on different devices, micro-batches running through them: a circular schedule.

    stages 2, micro-batches 3, repeats 2       time -->
    stage 0: layers 0, 2       m0 m1 m2 | m0 m1 m2 |  -
    stage 1: layers 1, 3        - m0 m1 | m2 m0 m1 | m2

A stage holds the layers (r * stages + s) * k ... + k of every repeat r, so that each micro-batch
goes round `repeats` times, and only the first and last turn of the ring stand idle:

    idle share = (stages - 1) / (repeats * micro-batches + stages - 1)       arXiv:2104.04473

All stages are one program: a map over a leading axis that is split over the mesh axis `pipeline`.
Shifting that axis by one is the only communication, a permutation between neighbours.  The backward
pass is the derivative of all this and runs the other way.

Legend: B batch  M micro-batches  T positions  D model width  L layers  S stages  R repeats
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.types import Params
from jaxlm.model.block import STREAM
from jaxlm.sharding.config import Schedule
from jaxlm.sharding.rules import constrain

AXIS = "pipeline"

# (parameters (k, ...), x (B, T, D), what else layers need) -> (x, what layers tell (k, ...))
Stage = Callable[[Params, jax.Array, Any], tuple[jax.Array, Any]]


def run(
    stage: Stage, params: Params, x_BTD: jax.Array, where: Any, schedule: Schedule
) -> tuple[jax.Array, Any]:
    """The layers' result (B, T, D), and what they told, (L, ...), summed over micro-batches.

    params:  (L, ...) at every leaf
    where:   (B, ...) at every leaf: what every layer reads of each row
    """
    S, M, R = schedule
    by_stage = jax.tree.map(partial(_by_stage, S, R), params)
    where_M = jax.tree.map(partial(_micro_batches, M), where)
    x_MBTD = _micro_batches(M, constrain(x_BTD, STREAM))
    number_S = jnp.arange(S)

    def work(item: jax.Array, params: Params, x_BTD: jax.Array, where: Any) -> tuple[Any, Any]:
        """One stage's part of a work item: repeat item // M of micro-batch item % M."""
        y_BTD, told = stage(params, x_BTD, where)
        is_real = (item >= 0) & (item < R * M)  # else the stage stands idle and its result is lost
        here_R = (jnp.arange(R) == item // M) & is_real
        place = lambda a: jnp.where(here_R.reshape(R, *[1] * a.ndim), a[None], 0)
        return y_BTD, jax.tree.map(place, told)

    def tick(carry: Any, t: jax.Array) -> tuple[Any, Any]:
        """Stage s does work item t - s; what the last one has done waits at the first in `queue`."""
        arriving_SBTD, queue_SMBTD = carry
        first_S = (number_S == 0)[:, None, None, None]
        next_SBTD = jax.lax.dynamic_index_in_dim(queue_SMBTD, t % M, 1, keepdims=False)
        x_SBTD = constrain(jnp.where(first_S, next_SBTD, arriving_SBTD), ("layers", *STREAM))
        item_S = t - number_S
        params_S = _pick(by_stage, jnp.clip(item_S // M, 0, R - 1), jax.P(AXIS))
        where_S = _pick(where_M, item_S % M, jax.P())
        y_SBTD, told = jax.vmap(work, spmd_axis_name=AXIS)(item_S, params_S, x_SBTD, where_S)
        arriving_SBTD = constrain(jnp.roll(y_SBTD, 1, axis=0), ("layers", *STREAM))
        slot = (t - S + 1) % M
        waiting_SBTD = jax.lax.dynamic_index_in_dim(queue_SMBTD, slot, 1, keepdims=False)
        waiting_SBTD = jnp.where(t >= S - 1, arriving_SBTD, waiting_SBTD)
        queue_SMBTD = jax.lax.dynamic_update_index_in_dim(queue_SMBTD, waiting_SBTD, slot, 1)
        return (arriving_SBTD, queue_SMBTD), told

    queue_SMBTD = constrain(
        jnp.broadcast_to(x_MBTD[None], (S, *x_MBTD.shape)), ("layers", None, *STREAM)
    )
    start = constrain(jnp.zeros_like(queue_SMBTD[:, 0]), ("layers", *STREAM)), queue_SMBTD
    (_, queue_SMBTD), told = jax.lax.scan(tick, start, jnp.arange(schedule.ticks))
    x_BTD = queue_SMBTD[0].swapaxes(0, 1).reshape(x_BTD.shape)
    in_order = lambda a: a.sum(0).swapaxes(0, 1).reshape(-1, *a.shape[4:])
    return x_BTD, jax.tree.map(in_order, told)


def _pick(tree: Any, index_S: jax.Array, held: jax.P) -> Any:
    """What each stage reads now, (S, ...), from what it holds: of its own, or the same as all.

    By hand, as the partitioner would gather what is indexed from all stages.
    """

    def local(tree: Any, index_S: jax.Array) -> Any:
        own = (lambda a: a[0]) if held == jax.P(AXIS) else (lambda a: a)
        pick = lambda a: jax.lax.dynamic_index_in_dim(own(a), index_S[0])
        return jax.tree.map(pick, tree)

    in_specs = (held, jax.P(AXIS))
    return jax.shard_map(
        local, in_specs=in_specs, out_specs=jax.P(AXIS), axis_names={AXIS}, check_vma=False
    )(tree, index_S)


def _by_stage(S: int, R: int, param_L: jax.Array) -> jax.Array:
    """(L, ...) -> (stages, repeats, k, ...), the first split over the mesh.

    With repeats this moves layers between devices, once per step: each sends what it holds, a
    small part of what gathering the parameters moves anyway.
    """
    param_L = _split_first(param_L)  # so is its gradient, before anyone reads it
    return _split_first(param_L.reshape(R, S, -1, *param_L.shape[1:]).swapaxes(0, 1))


def _split_first(x: jax.Array) -> jax.Array:
    """The first axis over the stages, the others as they are."""
    rest = [jax.P.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, jax.P(AXIS, *rest))


def _micro_batches(M: int, x_B: jax.Array) -> jax.Array:
    """(B, ...) -> (M, B / M, ...): micro-batch m takes rows m, m + M, ..., which stay where they are."""
    return x_B.reshape(-1, M, *x_B.shape[1:]).swapaxes(0, 1)
