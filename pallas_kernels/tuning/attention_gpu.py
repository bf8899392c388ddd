# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the attention kernels on NVIDIA GPUs, by generation, head width and dtype.

Untimed: no GPU was at hand.  Each program fits the shared memory of its chip, and of its registers
ptxas spills none, or for dk and dv up to 40 bytes a thread, 100 with a soft-cap (H100, jax 0.10.2,
CUDA 13).  This is where a tuning run should start.

Legend: T query positions  S key positions  H width of q and k  V width of v
"""

import dataclasses

from pallas_kernels.tuning.chips import GPUS

SMALLEST = 16  # rows and columns of the smallest product of the matrix units
WIDEST = 256  # of a head


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Of one kernel: a tile in positions, warps per program, depth of the loads' pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class AttentionBlocks:
    """Of the forward kernel, of that for dq and of that for dk and dv."""

    forward: Blocks
    d_queries: Blocks
    d_keys: Blocks


# (KB of shared memory per program, width): queries, keys, warps, stages of forward; dq; dk and dv
TABLE = {
    (227, 64): ((128, 128, 4, 3), (128, 64, 4, 3), (64, 128, 8, 3)),
    (227, 128): ((128, 128, 8, 2), (128, 64, 8, 2), (64, 128, 8, 2)),
    (227, 256): ((128, 64, 8, 2), (64, 64, 8, 2), (32, 64, 8, 2)),
    (163, 64): ((128, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3)),
    (163, 128): ((128, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 2)),
    (163, 256): ((64, 64, 8, 2), (64, 32, 8, 2), (32, 64, 8, 2)),
    (99, 64): ((128, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    (99, 128): ((64, 64, 4, 2), (64, 32, 4, 2), (32, 64, 4, 2)),
    (99, 256): ((64, 32, 8, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
}
FLOAT32 = {  # width; multiplied in full f32, by the vector units of any chip
    64: ((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    128: ((32, 16, 4, 1), (16, 16, 4, 1), (16, 32, 4, 1)),
    256: ((16, 16, 4, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
}


def attention_blocks(chip: str, T: int, S: int, H: int, V: int, itemsize: int) -> AttentionBlocks:
    """The table's, cut to the arrays.  H and V are padded to powers of two inside the kernels."""
    width = max(64, padded(H), padded(V))
    rows = FLOAT32[width] if itemsize == 4 else TABLE[GPUS[chip], width]
    cut = lambda queries, keys, *rest: Blocks(min(queries, padded(T)), min(keys, padded(S)), *rest)
    return AttentionBlocks(*(cut(*row) for row in rows))


def padded(n: int) -> int:
    """The least power of two, and product of the matrix units, that holds n."""
    return max(SMALLEST, 1 << (n - 1).bit_length())
