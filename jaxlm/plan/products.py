# SPDX-License-Identifier: Apache-2.0
"""FLOPs of matrix products, read from a program: 2 per multiply-add.

XLA for TPUs writes products as convolutions, batched ones as windows that touch the padding, so
only pairs of a window and a position that exist are counted.

The matrix units multiply bf16.  By default an f32 operand is rounded to it; with operand_precision
`high` it is cut into two such parts and with `highest` into three, and every pair of parts that
matters is a pass: 3 and 6 of two f32 operands, 2 and 3 of an f32 and a bf16 one (jax.lax.Precision
calls them bfloat16_3x and _6x).  libtpu's own count of a 4096^3 product agrees: 2.9, 6.2, 2.1 and
3.0 times one pass.  Passes take time; they are no FLOPs.
"""

import functools
import math
import re
from collections.abc import Iterator

from jaxlm.plan.hlo import Array, Computation, Module, Op

PRODUCTS = ("dot", "convolution")
PARTS = {"high": 2, "highest": 3}  # of an f32 operand, in bf16


def product_flops(module: Module, computation: Computation, op: Op) -> float:
    """Of one scheduled operation with all that is fused into it; one turn."""
    return sum(_flops(within, one) for within, one in _products(module, computation, op))


def product_work(module: Module, computation: Computation, op: Op) -> float:
    """The same, times the passes that it takes: what the matrix units do."""
    return sum(
        _flops(within, one) * num_passes(within, one)
        for within, one in _products(module, computation, op)
    )


def num_passes(computation: Computation, op: Op) -> int:
    """Products of bf16 that one product of its operands is."""
    match = re.search(r"operand_precision=\{(\w+),(\w+)\}", op.attributes)
    asked = match.groups() if match else ("default", "default")
    left, right = (
        PARTS.get(how, 1) if computation.arrays(name)[0].dtype == "f32" else 1
        for how, name in zip(asked, op.operands, strict=False)
    )
    most = max(left, right)
    return sum(i + j < most for i in range(left) for j in range(right))


def _products(module: Module, computation: Computation, op: Op) -> Iterator[tuple[Computation, Op]]:
    """The operation, or those fused into it, that are matrix products."""
    inside = op.called("calls")
    if op.kind in PRODUCTS:
        yield computation, op
    elif op.kind == "fusion" and inside in module.computations:
        yield from (found for found in module.inside(inside) if found[1].kind in PRODUCTS)


def _flops(computation: Computation, op: Op) -> float:
    left, right = (computation.arrays(name)[0] for name in op.operands[:2])
    return _dot(op, left) if op.kind == "dot" else _convolution(op, left, right)


def _dot(op: Op, left: Array) -> float:
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)
    contracted = [int(n) for n in match[1].split(",") if n] if match else []
    return 2.0 * op.arrays[0].num_items * math.prod(left.sizes[n] for n in contracted)


def _convolution(op: Op, left: Array, right: Array) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
    if labels is None:
        raise ValueError(f"{op.name}: a convolution without dim_labels")
    window = re.search(r"window=\{([^}]*)\}", op.attributes)
    fields = dict(part.split("=", 1) for part in window[1].split()) if window else {}
    sizes = [int(n) for n in fields["size"].split("x")] if "size" in fields else []
    numbers = lambda key: (
        [int(n) for n in fields[key].split("x")] if key in fields else [1] * len(sizes)
    )
    padding = fields["pad"].split("x") if "pad" in fields else ["0_0"] * len(sizes)
    pads = [int(pad.split("_")[0]) for pad in padding]
    strides, left_dilation, right_dilation = map(numbers, ("stride", "lhs_dilate", "rhs_dilate"))
    flops = 2.0 * op.arrays[0].num_items * right.sizes[labels[2].index("i")]
    for i, size in enumerate(sizes):
        positions = left.sizes[labels[1].index(str(i))]
        results = op.arrays[0].sizes[labels[3].index(str(i))]
        pairs = _pairs(
            positions, results, size, pads[i], strides[i], left_dilation[i], right_dilation[i]
        )
        flops *= pairs / max(results, 1)
    return flops


@functools.cache
def _pairs(
    positions: int, results: int, size: int, pad: int, stride: int, left: int, right: int
) -> int:
    """(result, place in the window) that fall on a position and not on padding or a gap."""
    last = (positions - 1) * left
    total = 0
    for place in range(size):
        offset = place * right - pad  # result r looks at r * stride + offset
        low = max(0, -(offset // stride))
        high = min(results - 1, (last - offset) // stride)
        if high < low:
            continue
        if left == 1:
            total += high - low + 1
            continue
        step = math.gcd(stride, left)
        if offset % step:
            continue
        period = left // step
        first = next(
            (r for r in range(low, low + period) if (r * stride + offset) % left == 0), None
        )
        if first is not None and first <= high:
            total += (high - first) // period + 1
    return total
