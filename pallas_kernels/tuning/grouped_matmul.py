# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the grouped matmul kernels: as much of a matrix as vector memory holds.

Legend: R rows  E groups  D contracted width  F other width
"""

from collections.abc import Callable
from typing import NamedTuple

from pallas_kernels.tuning.table import tuned


class Blocks(NamedTuple):
    rows: int  # of a tile
    piece: int  # of a tile's rows, at the border of groups
    columns: int  # of the result
    contracted: int  # rows of dw
    num_cores: int  # that share one call
    vmem_bytes: int


class Chip(NamedTuple):
    num_cores: int
    vmem_bytes: int  # that a kernel may use
    max_product: int  # multiply-adds of one unrolled product: what bounds the size of the code


MIB = 2**20
CHIPS = {
    "v5e": Chip(1, 100 * MIB, 2**32),
    "v5p": Chip(2, 56 * MIB, 2**31),
    "v6e": Chip(1, 100 * MIB, 2**33),
    "tpu7x": Chip(1, 56 * MIB, 2**32),
}
LANES = 128
UNIT = {"v5e": 128, "v5p": 128, "v6e": 256, "tpu7x": 256}  # width of the matrix unit
DTYPES = {2: "bfloat16", 4: "float32"}


def product_blocks(
    chip: str, R: int, D: int, F: int, E: int, item_bytes: int, *, is_flipped: bool = False
) -> Blocks:
    """Blocks of y (R, F) = x (R, D) w: tiles of rows as long as groups, then columns of w.

    Raises ValueError if D is beyond `max_width`.
    """
    num_cores, budget, max_product = CHIPS[chip]
    rows = 512
    while rows > LANES and (rows * E > R or 4 * rows * D * item_bytes > budget):
        rows //= 2
    bytes_of = lambda columns: _product_bytes(rows, D, columns, item_bytes)
    columns = _split(
        F, lambda columns: bytes_of(columns) <= budget and rows * D * columns <= max_product
    )
    if bytes_of(min(columns, F)) > budget:
        raise ValueError(f"a contracted width of {D} is too much for the vector memory of {chip}")
    # fewer rows do not pay for the way of a transposed matrix into the matrix unit
    piece = UNIT[chip] if is_flipped else LANES
    blocks = Blocks(rows, piece, columns, 0, num_cores, budget + 8 * MIB)
    operation = "grouped_matmul_dx" if is_flipped else "grouped_matmul_forward"
    return blocks._replace(**tuned(operation, chip, f"{E} x {D} x {F}", DTYPES[item_bytes]))


def max_width(chip: str, F: int, item_bytes: int) -> int:
    """The largest contracted width D of y (R, F) whose smallest blocks fit into vector memory."""
    of = lambda D: _product_bytes(LANES, D, min(LANES, F), item_bytes)
    return (CHIPS[chip].vmem_bytes - of(0)) // (of(1) - of(0))


def _product_bytes(rows: int, D: int, columns: int, item_bytes: int) -> int:
    """Two buffers of every block, the f32 product."""
    return 2 * item_bytes * (rows * D + D * columns + rows * columns) + 4 * rows * columns


def weights_blocks(chip: str, D: int, F: int, item_bytes: int) -> Blocks:
    """Blocks of dw (E, D, F)."""
    num_cores, budget, max_product = CHIPS[chip]
    rows = 512
    contracted = _split(D, lambda width: width <= 2048 // num_cores)
    # two buffers of every block; of dw the sum and a product in f32 too
    bytes_of = lambda columns: (
        2 * item_bytes * (rows * (contracted + columns) + contracted * columns)
        + 8 * contracted * columns
    )
    columns = _split(
        F,
        lambda columns: bytes_of(columns) <= budget and rows * contracted * columns <= max_product,
    )
    blocks = Blocks(rows, UNIT[chip], columns, contracted, num_cores, budget + 8 * MIB)
    return blocks._replace(**tuned("grouped_matmul_dw", chip, f"{D} x {F}", DTYPES[item_bytes]))


def _split(width: int, fits: Callable[[int], bool]) -> int:
    """The fewest equal parts of a width that fit, rounded up to lanes; LANES if none does."""
    for parts in range(1, -(-width // LANES) + 1):
        part = -(-width // (parts * LANES)) * LANES
        if fits(part):
            return part
    return LANES
