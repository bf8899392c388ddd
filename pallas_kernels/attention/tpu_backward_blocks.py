# SPDX-License-Identifier: Apache-2.0
"""Sizes of the backward kernel's blocks: what is fast on a chip, cut to the arrays and to VMEM.

Legend: T query positions  S key positions  H width of q and k  V width of v
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels.tuning.table import tuned

LANES = 128
VMEM_BYTES = {"v5e": 110 << 20, "v6e": 110 << 20}  # of 128 MiB
LEAST_VMEM_BYTES = 60 << 20  # of 64 MiB per core on v5p and tpu7x
KEPT_BYTES = 32 << 20  # of that for dk and dv, f32, of all keys of a call


class Blocks(NamedTuple):
    """Sizes that change the time and not the result."""

    block_kv: int  # keys per grid step
    tile_q: int  # queries per iteration of the inner loop
    block_diag: int = 128  # width of the steps of the staircase
    chunk_q: int | None = None  # most queries in VMEM at a time; None: what fits
    chunk_kv: int | None = None  # most keys per call of the kernel; None: what fits
    vmem_bytes: int = LEAST_VMEM_BYTES  # what fits in here


class Sizes(NamedTuple):
    """Blocks cut to the arrays of a call."""

    block_kv: int
    tile_q: int
    block_diag: int  # 0: no staircase
    chunk_q: int
    vmem_bytes: int


def default_blocks(chip: str, dtype: jnp.dtype, has_diagonal: bool, window: int | None) -> Blocks:
    """By static schedule at a head width of 128."""
    blocks = Blocks(2048, 1024 if chip in ("v6e", "tpu7x") else 512, 128)
    if dtype == jnp.float32:
        blocks = Blocks(512, 256)
    elif window is not None:
        blocks = Blocks(512, 512, 256)
    elif not has_diagonal:
        blocks = Blocks(1024, 512)
    shape_class = backward_class(has_diagonal, window)
    found = tuned("attention_backward", chip, shape_class, jnp.dtype(dtype).name)
    return blocks._replace(vmem_bytes=VMEM_BYTES.get(chip, LEAST_VMEM_BYTES), **found)


def backward_class(has_diagonal: bool, window: int | None) -> str:
    """Shapes that share a row of the table."""
    diagonal = "causal" if has_diagonal else "masked"
    if window is None:
        return diagonal
    return f"{diagonal}, window {'up to' if window <= 1024 else 'over'} 1024"


def most_keys(H: int, V: int) -> int:
    """How many keys one call may take: a multiple of any block_kv."""
    return max(1, KEPT_BYTES // (4 * _row(H, V)) // 4096) * 4096


def fit(
    blocks: Blocks,
    T: int,
    S: int,
    H: int,
    V: int,
    groups: int,
    has_diagonal: bool,
    dtype: jnp.dtype,
    dq_dtype: jnp.dtype,
) -> Sizes:
    """Blocks no larger than the arrays need, multiples of each other where the kernel needs it.

    With a diagonal block_kv is a multiple of tile_q and of block_diag, and chunk_q of block_kv.
    """
    tile_q = min(blocks.tile_q, round_up(T, LANES))
    block_kv = _even(S, blocks.block_kv, tile_q if has_diagonal else LANES)
    unit = block_kv if has_diagonal else tile_q
    # with a diagonal dq leaves VMEM by blocks of keys, else by chunks
    row = _row(H, V), round_up(H, LANES), dtype.itemsize, 0 if has_diagonal else dq_dtype.itemsize
    chunk_q = blocks.chunk_q or _most_queries(blocks.vmem_bytes, block_kv, block_kv, *row)
    if blocks.chunk_q is None and (groups > 1 or chunk_q < round_up(T, unit)):
        chunk_q = _most_queries(blocks.vmem_bytes, block_kv, S, *row)
    block_diag = math.gcd(blocks.block_diag, block_kv) if has_diagonal else 0
    return Sizes(block_kv, tile_q, block_diag, _even(T, chunk_q, unit), blocks.vmem_bytes)


def round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


def _even(size: int, most: int, unit: int) -> int:
    """`size` in as many parts as `most` asks for, of equal multiples of `unit`."""
    most = max(unit, most // unit * unit)
    return round_up(-(-size // -(-size // most)), unit)


def _row(H: int, V: int) -> int:
    """Numbers per position in VMEM, where a row is padded to whole registers."""
    return round_up(H, LANES) + round_up(V, LANES)


def _most_queries(
    vmem_bytes: int,
    block_kv: int,
    kept_keys: int,
    row: int,
    q_width: int,
    itemsize: int,
    dq_itemsize: int,
) -> int:
    """Queries that VMEM holds beside everything else; what passes in or out is held twice."""
    sums = 4 * kept_keys * row
    blocks = 2 * 2 * itemsize * block_kv * row  # k, v and dk, dv
    tiles = 2 * itemsize * block_kv * block_kv  # p, dx and what the compiler spills: measured
    # q and d_out, dq, its sum, lse and delta in rows of eight
    per_query = 2 * itemsize * row + 2 * dq_itemsize * q_width + 4 * q_width + 128
    return (vmem_bytes - sums - blocks - tiles) // per_query
