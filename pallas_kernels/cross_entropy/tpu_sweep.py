# SPDX-License-Identifier: Apache-2.0
"""One kernel call: a sweep over the vocabulary for two chunks of rows.

Legend: r rows of a chunk  P parts of the vocabulary, one per core  V vocabulary, tiles of v
        D width  K kept tiles (KV their tokens)
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.cross_entropy.rows import Pulls, Rows, Slices, Task, merge
from pallas_kernels.cross_entropy.tpu_kernel import (
    Gradients,
    Next,
    Prev,
    Shape,
    Statistics,
    kernel,
)
from pallas_kernels.tuning.cross_entropy import Config


class Problem(NamedTuple):
    """What does not change from chunk to chunk."""

    table_VD: jax.Array
    task: Task
    config: Config
    interpret: Any

    @property
    def parts(self) -> int:
        tiles = pl.cdiv(len(self.table_VD), self.config.block_v)
        return self.config.num_cores if tiles % self.config.num_cores == 0 else 1

    def empty_dtable(self) -> jax.Array:
        """Room for the sum of the table's gradient."""
        V, D = self.table_VD.shape
        if self.interpret:  # the interpreter cannot alias an array that ends inside of a tile
            V = pl.cdiv(V, self.config.block_v) * self.config.block_v
        return jax.lax.empty((V, D), jnp.float32)

    @property
    def num_valid(self) -> jax.Array | int:
        return len(self.table_VD) if self.task.num_valid is None else self.task.num_valid

    def merge(self, slices: Slices) -> Rows:
        return merge(slices, len(self.table_VD), self.task.axis_name)

    def shape(self, rows: int) -> Shape:
        V, v = len(self.table_VD), self.config.block_v
        tiles = pl.cdiv(V, v) // self.parts
        return Shape(
            tiles=tiles,
            kept_tiles=max(1, int(self.config.kept_frac * tiles)),
            columns=math.gcd(rows, self.config.columns),
            rows_in_table=V,
            has_invalid=self.task.num_valid is not None or V % v != 0,
            softcap=self.task.softcap,
        )


class Kept(NamedTuple):
    """The exponentials of the last K tiles of each part, and the peaks they were taken from."""

    p_PKVr: Any
    peak_PK1r: Any


class Chunk(NamedTuple):
    """Rows whose gradients are wanted."""

    number: jax.Array | int  # among the chunks of rows
    targets_r: jax.Array
    lse_r: jax.Array
    pulls: Pulls
    kept: Kept


class Blocks:
    """Block specs on the grid (parts, tiles), given (num_valid, chunk of prev, of the next)."""

    def __init__(self, shape: Shape, r: int, v: int, D: int) -> None:
        # read or written once, at the ends of the sweep: one buffer is enough
        once = partial(pl.BlockSpec, pipeline_mode=pl.Buffered(1))
        # tiles before the first kept one stand in for it
        kept_tile = lambda j: jnp.maximum(j - (shape.tiles - shape.kept_tiles), 0)
        self.prev_x_rD = once((None, r, D), lambda p, j, scalars: (scalars[1], 0, 0))
        self.next_x_rD = once((None, r, D), lambda p, j, scalars: (scalars[2], 0, 0))
        self.row_1r = once((1, r), lambda p, j, _: (0, 0))
        self.table_vD = pl.BlockSpec((v, D), lambda p, j, _: (p * shape.tiles + j, 0))
        # the first chunk adds to nothing: its sweep stays at tile 0, which is fetched once
        self.sum_vD = pl.BlockSpec(
            (v, D), lambda p, j, scalars: (p * shape.tiles + jnp.where(scalars[1] == 0, 0, j), 0)
        )
        self.dx_rD = once((None, r, D), lambda p, j, _: (p, 0, 0))
        self.part_1r = once((None, 1, r), lambda p, j, _: (p, 0, 0))
        self.kept = Kept(
            pl.BlockSpec((None, v, r), lambda p, j, _: (p, kept_tile(j), 0)),
            pl.BlockSpec((None, None, 1, r), lambda p, j, _: (p, kept_tile(j), 0, 0)),
        )


def sweep(
    problem: Problem,
    x_nrD: jax.Array,
    prev: tuple[Chunk, jax.Array] | None,
    following: tuple[jax.Array | int, jax.Array] | None,
    *,
    keep: bool = True,
) -> tuple[Any, Any, Any]:
    """Gradients of a chunk, added to dtable; statistics of another (its index, its targets).

    Returns the Gradients, the Slices and the Kept of the chunks that there are, else None.
    What was kept of the first chunk is overwritten with what is kept of the second.
    """
    _, r, D = x_nrD.shape
    shape, parts, v = problem.shape(r), problem.parts, problem.config.block_v
    blocks = Blocks(shape, r, v, D)
    scalars = [problem.num_valid, 0, 0]
    operands: list[Any] = [problem.table_VD, None, None]
    in_specs: list[Any] = [blocks.table_vD, None, None]
    outputs: list[Any] = [None, None]
    out_specs: list[Any] = [None, None]
    scratch = [None]
    aliases = {}
    f32 = jnp.float32
    if prev is not None:
        chunk, dtable_VD = prev
        scalars[1] = chunk.number
        known = [a_r[None] for a_r in (chunk.targets_r, chunk.lse_r, *chunk.pulls)]
        operands[1] = Prev._make([x_nrD, *known, *chunk.kept, dtable_VD])
        in_specs[1] = Prev._make(
            [blocks.prev_x_rD, *[blocks.row_1r] * 4, *blocks.kept, blocks.sum_vD]
        )
        dx = jax.ShapeDtypeStruct((parts, r, D), f32)
        outputs[0] = Gradients(dx, jax.ShapeDtypeStruct(dtable_VD.shape, f32))
        out_specs[0] = Gradients(blocks.dx_rD, blocks.table_vD)
        scratch[0] = pltpu.VMEM((v, r), x_nrD.dtype)
        aliases[9] = 1  # dtable, counted among all operands and all results
    if following is not None:
        scalars[2], targets_r = following
        operands[2] = Next(x_nrD, targets_r[None])
        in_specs[2] = Next(blocks.next_x_rD, blocks.row_1r)
        rows = [jax.ShapeDtypeStruct((parts, 1, r), t) for t in (f32, f32, f32, jnp.int32)]
        kept = Kept(
            jax.ShapeDtypeStruct((parts, shape.kept_tiles * v, r), x_nrD.dtype),
            jax.ShapeDtypeStruct((parts, shape.kept_tiles, 1, r), f32),
        )
        outputs[1] = Statistics(*rows, *(kept if keep else (None, None)))
        out_specs[1] = Statistics(*[blocks.part_1r] * 4, *(blocks.kept if keep else (None, None)))
        if prev is not None:
            aliases |= {7: 6, 8: 7}  # what is kept

    call = partial(_call, problem, shape, out_shape=outputs, input_output_aliases=aliases)
    gradients, statistics = call(in_specs=in_specs, out_specs=out_specs, scratch_shapes=scratch)(
        jnp.stack([jnp.asarray(s, jnp.int32) for s in scalars]), *operands
    )
    if statistics is None:
        return gradients, None, None
    slices = Slices(*[a_P1r[:, 0] for a_P1r in statistics[:4]])
    return gradients, slices, Kept(*statistics[4:])


def _call(
    problem: Problem,
    shape: Any,
    *,
    in_specs: Any,
    out_specs: Any,
    scratch_shapes: Any,
    **arrays: Any,
) -> Any:
    return pl.pallas_call(
        partial(kernel, shape=shape),
        name="linear_cross_entropy",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(problem.parts, shape.tiles),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=scratch_shapes,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=problem.config.vmem_bytes,
        ),
        interpret=problem.interpret,
        **arrays,
    )
