# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the attention kernels, by chip and class of shape.

Legend: T query positions  S key positions  H width of q and k  V width of v
"""

import dataclasses
import math

from pallas_kernels.tuning.table import tuned

CHUNK_BYTES = (
    20 << 20
)  # of vector memory for keys and values, each twice: one in use, one on its way


@dataclasses.dataclass(frozen=True)
class ForwardBlocks:
    """Sizes in positions.  chunk is a multiple of keys, and of queries if there is a staircase."""

    queries: int  # per program
    keys: int  # per turn of the loop
    chunk: int  # keys held in vector memory at a time
    diagonal: int = 256  # online: rows of a step of the staircase at the diagonal
    bounded_diagonal: int = 256  # the same where scores are bounded
    mxu_sums: bool = False  # online and cut tiles: row sums by the matrix unit, not the vector unit
    split_scale: bool = False  # online: scale folded into queries of twice the width
    parts: int = 1  # online: of a whole tile's queries, one's exponentials beside another's product


def forward_blocks(
    chip: str, T: int, S: int, H: int, V: int, itemsize: int, is_plain: bool, window: int | None
) -> ForwardBlocks:
    """What is fast on the chip, cut to the arrays and to its vector memory.

    is_plain: causal and nothing else, so that the diagonal is a staircase.
    """
    dtype = "float32" if itemsize == 4 else "bfloat16"
    best = dataclasses.replace(
        _rule(chip, itemsize, is_plain, window),
        **tuned("attention_forward", chip, forward_class(is_plain, window), dtype),
    )
    keys = min(best.keys, _up(S, 128))
    queries = min(best.queries, _up(T, 128))
    if is_plain:  # whole tiles between the first key and the square at the diagonal
        queries = _up(queries, keys)
    largest = CHUNK_BYTES // (2 * (_up(H, 128) + _up(V, 128)) * itemsize)
    unit = math.lcm(queries, keys) if is_plain else keys
    chunk = min(_up(S, unit), max(largest // unit, 1) * unit)
    step = lambda rows: rows if queries % rows == 0 else 128
    return dataclasses.replace(
        best,
        queries=queries,
        keys=keys,
        chunk=chunk,
        diagonal=step(best.diagonal),
        bounded_diagonal=step(best.bounded_diagonal),
        mxu_sums=best.mxu_sums and V == 128,
        split_scale=best.split_scale and H == 128,
        parts=best.parts if queries % (128 * best.parts) == 0 else 1,
    )


def forward_class(is_plain: bool, window: int | None) -> str:
    """Shapes that share a row of the table."""
    if not is_plain or (window is not None and window > 2048):
        return "masked"
    return "causal" if window is None else f"window up to {1024 if window <= 1024 else 2048}"


def _rule(chip: str, itemsize: int, is_plain: bool, window: int | None) -> ForwardBlocks:
    """By static schedule: jax 0.10.2, libtpu 0.0.42.1, bf16, head size 128, chunk to be filled in.

    Online / bounded in ms, B=4, 16 heads, T=4096, causal: v5p 0.788 / 0.680, v6e 0.837 / 0.730,
    tpu7x 0.716 / 0.588.  v5e has v5p's matrix units and takes its blocks.
    """
    is_wide = chip in ("v6e", "tpu7x")  # matrix units of 256 x 256 rather than 128 x 128
    if itemsize == 4:
        return ForwardBlocks(512, 512, 0)
    step, sums = (512 if is_wide else 256), chip == "v6e"
    if is_plain and window is None:
        keys = 1024 if is_wide else 512
        # v6e gains 2.8 % by parts, tpu7x 2.7 % at T=32768, v5p nothing
        return ForwardBlocks(2048, keys, 0, step, 256, sums, is_wide, parts=4 if is_wide else 1)
    if is_plain and window is not None and window <= 2048:  # v6e, T=8192, window 1024: 0.285 ms
        queries = 1024 if window <= 1024 else 2048
        return ForwardBlocks(queries, 512, 0, step, 256, mxu_sums=sums, split_scale=is_wide)
    return ForwardBlocks(512, 512, 0, mxu_sums=sums, split_scale=is_wide)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
