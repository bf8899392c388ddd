# SPDX-License-Identifier: Apache-2.0
"""Linear cross-entropy on TPU, forward and backward at once, ours and by XLA: how it is counted.

The public yardstick is XLA's three matrix products alone (logits, dx, dtable), each reading and
writing what it must: what no loss computes, and so faster than any.

Legend: R rows, chunks of r  V vocabulary, tiles of v  D width
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.bench.kernel_runs import Part, Runs, Work
from jaxlm.bench.schedule import Region, Schedule
from pallas_kernels.cross_entropy import tpu, xla
from pallas_kernels.cross_entropy.rows import Task, sums
from pallas_kernels.cross_entropy.specs import SPECS, Spec
from pallas_kernels.tuning.cross_entropy import Config, config

SHAPES = SPECS
SMALL = 100  # cycles: guarded regions up to here move data and are taken to run in every step


def choice(s: Spec, chip: str, table_bytes: int = 2) -> Config:
    """table_bytes: of an entry of the table, 2 or 4."""
    return config(chip, s.R, s.V, s.D, 2, table_bytes)


def ours(s: Spec, chip: str, blocks: Config | None = None, table_bytes: int = 2) -> Work:
    """Loss, dx and the f32 gradient of the table: a sweep for the first chunk, one for the last,
    and one for each chunk between.  A sweep takes the longer of its schedule and its bytes' way."""
    blocks = blocks or choice(s, chip, table_bytes)

    def function(x: Any, table: Any, targets: Any, weights: Any) -> Any:
        task = Task(s.softcap, jnp.float32(0), None, None)
        rows, dx, dtable = tpu.statistics_and_gradients(x, table, targets, weights, task, blocks)
        return sums(rows, targets, weights, 0.0).loss, dx, dtable

    r, v = min(blocks.rows, s.R), blocks.block_v
    chunks, tiles = -(-s.R // r), -(-s.V // v)
    parts = blocks.num_cores if tiles % blocks.num_cores == 0 else 1
    part_tiles = tiles // parts
    kept = max(1, int(blocks.kept_frac * part_tiles))
    again = part_tiles - kept
    products = (parts * again, tiles) if again else (tiles,)
    sweep = Runs(tiles, (), products, parts, parts)
    first = Runs(tiles, (), (tiles,), parts, parts)
    num_cores = lambda cores: min(cores, parts)
    rule = lambda runs: (
        lambda schedule, cores: _sweep(runs, kept * parts, schedule, num_cores(cores))
    )
    table, dtable, kept_bytes = table_bytes * s.V * s.D, 4 * s.V * s.D, 2 * r * v * kept * parts
    statistics = table + kept_bytes + 2 * r * s.D
    gradients = table + 2 * dtable + kept_bytes + 2 * r * s.D + 4 * parts * r * s.D
    both = statistics + gradients - table - dtable / max(chunks - 1, 1)  # the first adds to nothing
    kernels = (  # the shortest program first: statistics, gradients, both
        Part("linear_cross_entropy", rule(first), 1, statistics),
        Part("linear_cross_entropy", rule(sweep), 1, gradients),
        Part("linear_cross_entropy", rule(sweep), chunks - 1, both),
    )
    whole = ("f32 logits", 4 * s.R * s.V)
    return Work(function, _arguments(s, table_bytes), kernels, whole=whole)


def _sweep(runs: Runs, kept: float, schedule: Schedule, cores: int) -> Callable[[Region], float]:
    """Guarded regions without products: taking kept exponentials, which has a few to compute;
    clearing sums; moving data."""
    counted = runs.of(schedule, cores)

    def of(region: Region) -> float:
        is_guard = len(region.loops) == 1 and schedule.depth(region) > 1
        if is_guard and not region.units.get("MXU", 0):
            if region.units.get("EUP", 0):
                return kept / cores
            if region.cycles <= SMALL:
                return runs.steps / cores
        return counted(region)

    return of


def products(s: Spec, chip: str) -> Work:
    """The three products by XLA, each with its operands in memory, all in bf16."""

    def function(x: Any, table: Any, z: Any) -> Any:
        return (
            jnp.einsum("rd,vd->rv", x, table),
            jnp.einsum("rv,vd->rd", z, table),
            jnp.einsum("rv,rd->vd", z, x),
        )

    x, table, *_ = _arguments(s)
    return Work(function, (x, table, jax.ShapeDtypeStruct((s.R, s.V), jnp.bfloat16)))


def chunked(s: Spec, chip: str) -> Work:
    """Our form for backends without a kernel: one chunk of rows has its logits at a time."""

    def function(x: Any, table: Any, targets: Any, weights: Any) -> Any:
        task = Task(s.softcap, jnp.float32(0), None, None)
        rows, dx, dtable = xla.statistics_and_gradients(x, table, targets, weights, task)
        return sums(rows, targets, weights, 0.0).loss, dx, dtable

    return Work(function, _arguments(s), whole=("f32 logits", 4 * s.R * s.V))


def _arguments(s: Spec, table_bytes: int = 2) -> tuple[jax.ShapeDtypeStruct, ...]:
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    table_dtype = jnp.bfloat16 if table_bytes == 2 else jnp.float32
    x, table = array(jnp.bfloat16, s.R, s.D), array(table_dtype, s.V, s.D)
    return x, table, array(jnp.int32, s.R), array(jnp.float32, s.R)
