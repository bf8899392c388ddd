# SPDX-License-Identifier: Apache-2.0
"""Linear cross-entropy on TPU: chunks of rows through the kernel, gradients on the way.

A loss with gradients takes three products (logits, dx, dtable), and a fourth where logits are
computed twice.  The gradients of a row need its log-normaliser, so all of its logits, before the
first of them.  Hence chunks of rows: after a chunk's statistics its gradients follow, from those
exponentials that fit into memory and from recomputed ones for the rest.  dtable is a running sum
over the chunks, read and written once per chunk, so chunks must be long enough to hide its way to
memory and back; and the gradients of a chunk share a sweep over the vocabulary with the statistics
of the next, so that the table is read once for both:

    sweep 0: statistics 0 | sweep i: gradients i - 1, statistics i | sweep n: gradients n - 1

Memory besides inputs and outputs: the kept exponentials in the dtype of x, the f32 dx of a chunk.
VMEM: x of two chunks, f32 dx of one; a tile of the table (twice) and of dtable (f32, four times).

Legend: R rows, n chunks of r  P parts of the vocabulary  V vocabulary  D width
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.cross_entropy.rows import Rows, Slices, Task, chunks, pulls, whole
from pallas_kernels.cross_entropy.tpu_sweep import Chunk, Kept, Problem, sweep
from pallas_kernels.tuning.cross_entropy import Config

LANES = 128


def statistics(
    x_RD: jax.Array,
    table_VD: jax.Array,
    targets_R: jax.Array,
    task: Task,
    config: Config,
    interpret: Any = False,
) -> Rows:
    """Statistics of all rows: what evaluation needs."""
    problem = Problem(table_VD, task, config, interpret)
    x_nrD, targets_nr = (chunks(a, config.rows, LANES) for a in (x_RD, targets_R))

    def one(chunk: tuple[jax.Array, jax.Array]) -> Rows:
        return problem.merge(sweep(problem, x_nrD, None, chunk, keep=False)[1])

    return whole(jax.lax.map(one, (jnp.arange(len(x_nrD)), targets_nr)), len(x_RD))


def statistics_and_gradients(
    x_RD: jax.Array,
    table_VD: jax.Array,
    targets_R: jax.Array,
    weights_R: jax.Array,
    task: Task,
    config: Config,
    interpret: Any = False,
) -> tuple[Rows, jax.Array, jax.Array]:
    """Statistics of all rows, dx (R, D) in the dtype of x, dtable (V, D) in f32."""
    problem = Problem(table_VD, task, config, interpret)
    x_nrD, targets_nr, weights_nr = (
        chunks(a, config.rows, LANES) for a in (x_RD, targets_R, weights_R)
    )
    n = len(x_nrD)

    def finish(i: jax.Array | int, slices: Slices, kept: Kept) -> tuple[Chunk, Rows]:
        rows = problem.merge(slices)
        factors = pulls(rows, weights_nr[i], task)
        return Chunk(i, targets_nr[i], rows.lse_r, factors, kept), rows

    def put(dx_nrD: jax.Array, i: jax.Array | int, dx_PrD: jax.Array) -> jax.Array:
        dx_rD = jnp.sum(dx_PrD, axis=0)
        if task.axis_name is not None:
            dx_rD = jax.lax.psum(dx_rD, task.axis_name)
        return jax.lax.dynamic_update_index_in_dim(dx_nrD, dx_rD.astype(x_RD.dtype), i, 0)

    def step(carry: tuple, i: jax.Array) -> tuple[tuple, Rows]:
        chunk, dtable_VD, dx_nrD = carry
        following = i, targets_nr[i]
        (dx_PrD, dtable_VD), *found = sweep(problem, x_nrD, (chunk, dtable_VD), following)
        chunk, rows = finish(i, *found)
        return (chunk, dtable_VD, put(dx_nrD, i - 1, dx_PrD)), rows

    _, *found = sweep(problem, x_nrD, None, (0, targets_nr[0]))
    chunk, first = finish(jnp.int32(0), *found)
    dtable_VD = problem.empty_dtable()
    carry = chunk, dtable_VD, jnp.zeros_like(x_nrD)
    (chunk, dtable_VD, dx_nrD), others = jax.lax.scan(step, carry, jnp.arange(1, n))
    (dx_PrD, dtable_VD), *_ = sweep(problem, x_nrD, (chunk, dtable_VD), None)
    dx_nrD = put(dx_nrD, n - 1, dx_PrD)
    rows_nr = jax.tree.map(lambda a_r, b_mr: jnp.concatenate([a_r[None], b_mr]), first, others)
    return *whole((rows_nr, dx_nrD), len(x_RD)), dtable_VD[: len(table_VD)]
