# SPDX-License-Identifier: Apache-2.0
"""What softmax cross-entropy needs of each row of logits, and how slices of it combine.

A slice of the vocabulary (a core's part, a device's shard) gives four numbers a row; the numbers
of the whole row follow from those of its slices, whatever computed them:

    peak = max_v z_v        total = sum_v exp(z_v - peak)       lse = peak + log total
    hit = z_target          best = first v with z_v = peak

    loss = sum_R w (lse - hit + z_loss * lse^2)
    d loss / d z_v = w (1 + 2 z_loss * lse) exp(z_v - lse) - w [v = target]

and both terms of the gradient take the slope of the soft-cap at z_v.

Legend: R rows (r of a chunk)  P slices of the vocabulary  V vocabulary
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LOWEST = -1e30  # a logit that is not there; finite, so that differences of two are no NaN


class Task(NamedTuple):
    """What the loss is, and the mesh axis whose devices hold slices of the vocabulary."""

    softcap: float | None
    z_loss: jax.Array | float
    num_valid: jax.Array | int | None
    axis_name: str | None


class CrossEntropy(NamedTuple):
    """Sums over rows, f32 scalars, each row times its weight; and the log-normalisers."""

    loss: jax.Array  # nats + z_loss * z_squares
    nats: jax.Array  # cross-entropy
    z_squares: jax.Array  # squared log-normalisers
    correct: jax.Array  # rows whose most likely token, the first if several, is the target
    count: jax.Array  # type: ignore[assignment]  # the weights; of a tuple nobody counts values
    lse_R: jax.Array


class Slices(NamedTuple):
    """Of each row, per slice of the vocabulary."""

    peak_Pr: jax.Array
    total_Pr: jax.Array
    hit_Pr: jax.Array  # LOWEST where the target lies in another slice
    best_Pr: jax.Array


class Rows(NamedTuple):
    """Of each row, over the whole vocabulary."""

    lse_r: jax.Array
    hit_r: jax.Array
    best_r: jax.Array


class Pulls(NamedTuple):
    """Factors of the two terms of the gradient: dz_v = softmax_v * down - [v = target] * up."""

    down_r: jax.Array
    up_r: jax.Array


def merge(slices: Slices, V: int, axis_name: str | None) -> Rows:
    """Whole rows from their slices, and from those of the devices along a mesh axis (V each)."""
    across = lambda collective, a_r: a_r if axis_name is None else collective(a_r, axis_name)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * V
    peak_r = across(jax.lax.pmax, jnp.max(slices.peak_Pr, axis=0))
    total_r = jnp.sum(slices.total_Pr * jnp.exp(slices.peak_Pr - peak_r[None]), axis=0)
    is_best_Pr = slices.peak_Pr == peak_r[None]
    nowhere = jnp.iinfo(jnp.int32).max
    best_r = jnp.min(jnp.where(is_best_Pr, slices.best_Pr + first, nowhere), axis=0)
    return Rows(
        lse_r=peak_r + jnp.log(across(jax.lax.psum, total_r)),
        hit_r=across(jax.lax.pmax, jnp.max(slices.hit_Pr, axis=0)),
        best_r=across(jax.lax.pmin, best_r),
    )


def pulls(rows: Rows, weights_r: jax.Array, task: Task) -> Pulls:
    slope_r = 1.0 if task.softcap is None else 1.0 - jnp.square(rows.hit_r / task.softcap)
    return Pulls(
        down_r=weights_r * (1.0 + 2.0 * task.z_loss * rows.lse_r),
        up_r=jnp.where(rows.hit_r == LOWEST, 0.0, weights_r * slope_r),
    )


def chunks(a_R: jax.Array, rows: int, multiple: int = 1) -> jax.Array:
    """(R, ...) as (n, r, ...), r about `rows` at most; zeros fill the last chunk."""
    R = len(a_R)
    n = -(-R // rows)
    r = -(-R // (n * multiple)) * multiple
    padded_R = jnp.pad(a_R, [(0, n * r - R)] + [(0, 0)] * (a_R.ndim - 1))
    return padded_R.reshape(n, r, *a_R.shape[1:])


def whole(tree: Any, R: int) -> Any:
    """The reverse of `chunks`, for each array of a tree."""
    return jax.tree.map(lambda a_nr: a_nr.reshape(-1, *a_nr.shape[2:])[:R], tree)


def sums(
    rows: Rows, targets_R: jax.Array, weights_R: jax.Array, z_loss: jax.Array | float
) -> CrossEntropy:
    """The weighted sums; rows of weight 0 count for nothing, whatever they hold."""
    weighted = lambda a_R: jnp.sum(jnp.where(weights_R == 0, 0.0, weights_R * a_R))
    nats = weighted(rows.lse_r - rows.hit_r)
    z_squares = weighted(jnp.square(rows.lse_r))
    return CrossEntropy(
        loss=nats + z_loss * z_squares,
        nats=nats,
        z_squares=z_squares,
        correct=jnp.sum(weights_R * (rows.best_r == targets_R)),
        count=jnp.sum(weights_R),
        lse_R=rows.lse_r,
    )
