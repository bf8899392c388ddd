# SPDX-License-Identifier: Apache-2.0
"""Sizes of the linear cross-entropy kernel, by chip and shape.

A sweep over the vocabulary does 6 r D flops for each token of it and moves the table and twice its
f32 gradient, so r must exceed about 10/6 of the chip's flops per byte; above that, less is better,
because more of a chunk's exponentials can be kept in the same memory.

Legend: R rows, chunks of r  V vocabulary, tiles of v  D width
"""

from typing import NamedTuple

from pallas_kernels.tuning.table import tuned


class Config(NamedTuple):
    rows: int  # of a chunk, at most
    block_v: int  # tokens of the vocabulary per grid step
    kept_frac: float  # of a chunk's exponentials kept in memory; the rest is computed twice
    columns: int  # rows, or columns of D, of one product in the kernel
    num_cores: int  # that share a chip's memory and one call
    vmem_bytes: int


class Chip(NamedTuple):
    rows: int
    block_v: int
    step_v: int  # width of the matrix unit
    num_cores: int
    vmem_bytes: int


MIB = 2**20
# Scores at R=8192, D=4096, V=128256, bf16, libtpu 0.0.42.1: v5p 0.98, v6e 1.13 of the time of the
# three products by XLA (the larger of static schedule and memory time).
CHIPS = {
    "v5e": Chip(512, 384, 128, 1, 110 * MIB),
    "v5p": Chip(512, 384, 128, 2, 60 * MIB),
    "v6e": Chip(1024, 768, 256, 1, 110 * MIB),
    "tpu7x": Chip(512, 256, 256, 1, 60 * MIB),
}
KEPT_SHARE = 0.049  # of the memory that f32 logits would take
KEPT_BYTES = 64 * MIB  # or this, if it is more
LEAST_ROWS = 128  # of a chunk


def config(chip: str, R: int, V: int, D: int, item_bytes: int, table_item_bytes: int) -> Config:
    """Sizes of the table, else by chip, as far as they fit.

    Raises ValueError if D is beyond `max_width`.
    """
    known = CHIPS[chip]
    dtype = "float32" if item_bytes == 4 else "bfloat16"
    found = tuned("cross_entropy", chip, f"{V} x {D}", dtype)
    wanted = found.get("rows", known.rows), found.get("block_v", known.block_v)
    return fitted(chip, R, V, D, item_bytes, table_item_bytes, *wanted)


def fitted(
    chip: str,
    R: int,
    V: int,
    D: int,
    item_bytes: int,
    table_item_bytes: int,
    rows: int,
    block_v: int,
) -> Config:
    """Chunks of so many rows, fewer where D is large; tiles up to so wide that the cores can share."""
    known = CHIPS[chip]
    while _vmem(rows, block_v, D, item_bytes, table_item_bytes) > known.vmem_bytes:
        if block_v > known.step_v:
            block_v = max(block_v - known.step_v, known.step_v)
        elif rows > LEAST_ROWS:
            rows = max(rows // 2, LEAST_ROWS)
        else:
            raise ValueError(f"a width of {D} is too much for the vector memory of {chip}")
    for v in range(block_v, block_v // 3, -known.step_v):
        if -(-V // v) % known.num_cores == 0:  # else one core has it all
            block_v = v
            break
    r = min(rows, R)
    memory = max(KEPT_SHARE * 4 * R * V, KEPT_BYTES)
    kept_frac = min(1.0, memory / (item_bytes * r * V))
    return Config(rows, block_v, kept_frac, 512, known.num_cores, known.vmem_bytes)


def max_width(chip: str, item_bytes: int, table_item_bytes: int) -> int:
    """The largest D whose smallest blocks fit into vector memory."""
    known = CHIPS[chip]
    of = lambda D: _vmem(LEAST_ROWS, known.step_v, D, item_bytes, table_item_bytes)
    return (known.vmem_bytes - of(0)) // (of(1) - of(0))


def _vmem(rows: int, block_v: int, D: int, item_bytes: int, table_item_bytes: int) -> int:
    """x of two chunks and dx; table (two buffers) and dtable (four); logits."""
    chunk = rows * D * (2 * item_bytes + 4)
    tile = block_v * D * (2 * table_item_bytes + 16)
    return chunk + tile + block_v * rows * (5 * item_bytes + 4)
