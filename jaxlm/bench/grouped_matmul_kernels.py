# SPDX-License-Identifier: Apache-2.0
"""Grouped matrix products on TPU, ours and public ones: what to compile and how it is counted.

The public kernels are one design: megablox in jax, in tokamax, and inside of XLA's ragged_dot.

Legend: R rows  E groups  M visits  P parts  D width of x  F width of y  (m, k, n) a tile of rows, contraction, result
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
from pallas_kernels.grouped_matmul.schedule import Visits, num_pieces, shared, visits
from pallas_kernels.grouped_matmul.specs import SPECS, Spec, equal_sizes, zipf_sizes
from pallas_kernels.tuning.grouped_matmul import Blocks, product_blocks, weights_blocks

SHAPES = {
    f"{name}.{how}": (spec, sizes(spec))
    for name, spec in SPECS.items()
    for how, sizes in (("equal", equal_sizes), ("zipf", zipf_sizes))
}
Shape = tuple[Spec, np.ndarray]
DIRECTIONS = ("forward", "dx", "dw")


class Met(NamedTuple):
    """Meetings of tiles of rows with groups, by part of the grid."""

    full_P: np.ndarray  # tiles that one group fills
    pieces_P: np.ndarray  # of the other tiles, that hold rows of the group


def meetings(plan: Visits, tile: int, piece: int) -> Met:
    """Counted in the kernels' own table of visits, (P, M)."""
    first_PM = plan.tile_M * tile
    start_PM = jnp.maximum(plan.start_M - first_PM, 0)
    stop_PM = jnp.minimum(plan.stop_M - first_PM, tile)
    is_full_PM = stop_PM - start_PM == tile
    pieces_PM = jnp.where(is_full_PM, 0, num_pieces(start_PM, stop_PM, piece))
    return Met(np.asarray(is_full_PM.sum(-1)), np.asarray(pieces_PM.sum(-1)))


def num_visits(sizes: Sequence[int] | np.ndarray, tile: int) -> int:
    """Pairs of a tile and a group with rows in it."""
    stops = np.cumsum(sizes)
    held = np.asarray(sizes) > 0
    return int((((stops - 1) // tile - (stops - sizes) // tile + 1) * held).sum())


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
    parts, piece = min(blocks.num_cores, tiles), min(blocks.piece, r)
    plan = visits(jnp.asarray([*sizes, s.R - sizes.sum()]), s.R, r, visit_empty=False)
    plan = shared(plan, r, piece, tiles, parts)
    met = meetings(plan, r, piece)
    busiest = int(np.argmax(met.full_P * r + met.pieces_P * piece))  # the others wait for it
    full, pieces = (parts * columns * int(by_part[busiest]) for by_part in met)
    steps = parts * columns * plan.tile_M.shape[1]
    runs = Runs(steps, (pieces, 0), (full,), steps, steps)  # the second loop: rows of no group

    def function(x: Any, w: Any, groups: Any) -> Any:
        return tpu.product(x, w, groups, blocks, is_flipped=is_flipped)

    matrices = sum(len(np.unique(group_M)) for group_M in np.asarray(plan.group_M))
    moved = 2 * (s.R * D * columns + matrices * D * F + s.R * F)
    return Work(function, (x, w, groups), (Part("grouped_matmul", runs.of),), moved)


def _our_weights(shape: Shape, direction: str, blocks: Blocks) -> Work:
    s, sizes = shape
    (x, dy, groups), D, F = _operands(s, direction)
    down, across = -(-D // min(blocks.contracted, D)), -(-F // min(blocks.columns, F))
    grid = down * across
    plan = visits(jnp.asarray(sizes), s.R, blocks.rows, visit_empty=True)
    met = meetings(plan, blocks.rows, min(blocks.piece, blocks.rows))
    full, pieces = (grid * int(count) for count in met)
    steps, empty = grid * len(plan.tile_M), int((sizes == 0).sum())
    runs = Runs(steps, (pieces,), (full,), grid * empty, grid * s.E)

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
    visited, groups = num_visits(sizes, m), int((sizes > 0).sum())
    if direction == "dw":
        grid, empty = ns * ks, s.E - groups
        runs = Runs(grid * (visited + empty), (), (grid * visited,), grid * s.E, grid * s.E)
        return runs, 2 * (s.R * D * ns + s.R * F * ks + s.E * D * F)
    steps = ns * visited * ks
    products = (steps / ks, steps - steps / ks) if ks > 1 else (steps,)  # last of k; others
    x = s.R * D * ns if ks == 1 else visited * m * D * ns
    w = groups * D * F if ks == 1 else visited * D * F
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
