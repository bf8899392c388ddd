# SPDX-License-Identifier: Apache-2.0
"""Grouped matrix products on TPU, ours and public ones: what to compile and how it is counted.

The public kernels are one design: megablox in jax, in tokamax, and inside of XLA's ragged_dot.

Legend: R rows  E groups  D width of x  F width of y  (m, k, n) a tile of rows, contraction, result
"""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.bench.kernel_runs import ChangedError, Part, Rule, Runs, Work
from jaxlm.bench.schedule import Region, Schedule
from pallas_kernels.grouped_matmul import tpu
from pallas_kernels.grouped_matmul.specs import SPECS, Spec, equal_sizes, zipf_sizes
from pallas_kernels.tuning.grouped_matmul import Blocks, product_blocks, weights_blocks

SHAPES = {
    f"{name}.{how}": (spec, sizes(spec))
    for name, spec in SPECS.items()
    for how, sizes in (("equal", equal_sizes), ("zipf", zipf_sizes))
}
Shape = tuple[Spec, np.ndarray]
DIRECTIONS = ("forward", "dx", "dw")


class Tiles(NamedTuple):
    """Meetings of tiles of rows with groups."""

    full: int  # tiles that one group fills
    pieces: int  # of the others, that hold rows of the group
    visits: int

    @classmethod
    def of(cls, sizes: Sequence[int] | np.ndarray, tile: int, piece: int = 1) -> "Tiles":
        full = pieces = visits = 0
        stop = 0
        for size in map(int, sizes):
            start, stop = stop, stop + size
            for first in range(start // tile * tile, stop, tile) if size else ():
                a, b = max(start - first, 0), min(stop - first, tile)
                visits += 1
                if b - a == tile:
                    full += 1
                else:
                    pieces += -(-b // piece) - a // piece
        return cls(full, pieces, visits)


def choice(shape: Shape, chip: str, direction: str) -> Blocks:
    s, _ = shape
    if direction == "dw":
        return weights_blocks(chip, s.D, s.F, 2)
    if direction == "dx":
        return product_blocks(chip, s.R, s.F, s.D, s.E, 2, is_flipped=True)
    return product_blocks(chip, s.R, s.D, s.F, s.E, 2)


def ours(shape: Shape, chip: str, direction: str, blocks: Blocks | None = None) -> Work:
    blocks = blocks or choice(shape, chip, direction)
    return (_our_weights if direction == "dw" else _our_product)(shape, direction, blocks)


def _our_product(shape: Shape, direction: str, blocks: Blocks) -> Work:
    (s, sizes), is_flipped = shape, direction == "dx"
    (x, w, groups), D, F = _operands(s, direction)
    r, tiles, columns = blocks.rows, -(-s.R // blocks.rows), -(-F // min(blocks.columns, F))
    parts = blocks.num_cores if tiles % blocks.num_cores == 0 else 1
    rows, stops = tiles // parts * r, np.cumsum(sizes)
    by_part = [
        np.diff(np.clip(stops - p * rows, 0, rows), prepend=0) for p in range(parts)
    ]  # sizes of the groups in each part
    met = [Tiles.of(some, r, min(blocks.piece, r)) for some in by_part]
    full, pieces = (sum(getattr(t, what) for t in met) * columns for what in ("full", "pieces"))
    steps = parts * columns * (tiles // parts + s.E + 1)
    runs = Runs(steps, (pieces, 0), (full,), steps, steps)  # the second loop: rows of no group

    def function(x: Any, w: Any, groups: Any) -> Any:
        return tpu.product(x, w, groups, blocks, is_flipped=is_flipped)

    moved = 2 * (s.R * D * columns + sum(int((some > 0).sum()) for some in by_part) * D * F)
    moved += 2 * s.R * F
    return Work(function, (x, w, groups), (Part("grouped_matmul", runs.of),), moved)


def _our_weights(shape: Shape, direction: str, blocks: Blocks) -> Work:
    s, sizes = shape
    (x, dy, groups), D, F = _operands(s, direction)
    down, across = -(-D // min(blocks.contracted, D)), -(-F // min(blocks.columns, F))
    met, grid = Tiles.of(sizes, blocks.rows, min(blocks.piece, blocks.rows)), down * across
    steps = grid * (-(-s.R // blocks.rows) + s.E)
    empty = int((sizes == 0).sum())
    runs = Runs(steps, (grid * met.pieces,), (grid * met.full,), grid * empty, grid * s.E)

    def function(x: Any, dy: Any, groups: Any) -> Any:
        return tpu.weights_gradient(x, dy, groups, jnp.bfloat16, blocks)

    moved = 2 * (s.R * D * across + s.R * F * down + s.E * D * F)
    return Work(function, (x, dy, groups), (Part("grouped_matmul_dw", runs.of),), moved)


def megablox(
    shape: Shape, chip: str, direction: str, m: int, k: int, n: int, *, is_tokamax: bool = False
) -> Work:
    """The kernel of jax, or tokamax's newer one, with tiles (m, k, n)."""
    s, _ = shape
    (a, b, groups), *_ = _operands(s, direction)

    def function(a: Any, b: Any, groups: Any) -> Any:
        options: dict[str, Any] = {"tiling": (m, k, n)}
        if is_tokamax:
            backend = import_module("tokamax._src.ops.ragged_dot.pallas_mosaic_tpu_kernel")
            options |= {"out_dtype": jnp.bfloat16, "precision": jax.lax.Precision.DEFAULT}
        else:  # by name: the package has a function of the module's name
            backend = import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
            options["preferred_element_type"] = jnp.bfloat16
        if direction == "dw":
            return backend.tgmm(a.swapaxes(0, 1), b, groups, **options)
        return backend.gmm(a, b, groups, transpose_rhs=direction == "dx", **options)

    name = "tgmm" if direction == "dw" else "gmm"
    rule, moved = _megablox_rule(shape, direction, m, k, n)
    return Work(function, (a, b, groups), (Part(name, rule),), moved)


def _megablox_rule(shape: Shape, direction: str, m: int, k: int, n: int) -> tuple[Rule, int]:
    """A product that every step does may or may not stand in a condition of its own."""
    runs, moved = _megablox_runs(shape, direction, m, k, n)

    def rule(schedule: Schedule, cores: int) -> Callable[[Region], float]:
        is_bare = runs.products == (runs.steps,) and not schedule.guarded_products
        return (runs._replace(products=()) if is_bare else runs).of(schedule, cores)

    return rule, moved


def _megablox_runs(shape: Shape, direction: str, m: int, k: int, n: int) -> tuple[Runs, int]:
    """Its grid has (tile of n, visit, tile of k), for dw (tile of n, tile of k, visit)."""
    s, sizes = shape
    _, D, F = _operands(s, direction)
    ks, ns = -(-D // k), -(-F // n)
    visits, groups = Tiles.of(sizes, m).visits, int((sizes > 0).sum())
    if direction == "dw":
        grid, empty = ns * ks, s.E - groups
        runs = Runs(grid * (visits + empty), (), (grid * visits,), grid * s.E, grid * s.E)
        return runs, 2 * (s.R * D * ns + s.R * F * ks + s.E * D * F)
    steps = ns * visits * ks
    products = (steps / ks, steps - steps / ks) if ks > 1 else (steps,)  # last of k; others
    x = s.R * D * ns if ks == 1 else visits * m * D * ns
    w = groups * D * F if ks == 1 else visits * D * F
    return Runs(steps, (), products, steps / ks, steps / ks), 2 * (x + w + s.R * F)


def ragged_dot(shape: Shape, chip: str, direction: str) -> Work:
    """jax.lax.ragged_dot by XLA, which brings a kernel with tiles of its own choice."""
    s, _ = shape
    arguments, *_ = _operands(s, direction)
    contract = {"forward": ((1,), (1,)), "dx": ((1,), (2,)), "dw": ((0,), (0,))}[direction]
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(contract, ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[] if direction == "dw" else [0],
    )

    def function(a: Any, b: Any, groups: Any) -> Any:
        return jax.lax.ragged_dot_general(
            a, b, groups, numbers, preferred_element_type=jnp.bfloat16
        )

    def parts(program: str) -> tuple[tuple[Part, ...], int]:
        found = re.findall(r'ragged_dot_tiling="(\d+),(\d+),(\d+)"', program)
        if not found:  # plain operations
            return (), 0
        if len(found) != 1:
            raise ChangedError(f"XLA's program has {len(found)} ragged products, not one")
        rule, moved = _megablox_rule(shape, direction, *map(int, found[0]))
        # the table of visits, by a loop over groups and one over visits, at most
        turns = s.E + s.R // int(found[0][0])
        plan = lambda schedule, cores: lambda region: turns if region.loops else 1.0
        return (Part("ragged-dot-none", rule), Part("ragged-dot-metadata", plan)), moved

    return Work(function, arguments, parts_of=parts)


def _operands(s: Spec, direction: str) -> tuple[tuple[jax.ShapeDtypeStruct, ...], int, int]:
    """The operands of a product, the contracted width (dw: the one of x) and the other."""
    bf16 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    x, w, dy = bf16(s.R, s.D), bf16(s.E, s.D, s.F), bf16(s.R, s.F)
    groups = jax.ShapeDtypeStruct((s.E,), jnp.int32)
    if direction == "dw":
        return (x, dy, groups), s.D, s.F
    return ((dy, w, groups), s.F, s.D) if direction == "dx" else ((x, w, groups), s.D, s.F)
