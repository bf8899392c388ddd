# SPDX-License-Identifier: Apache-2.0
"""FLOPs of matrix products, read from a program: 2 per multiply-add.

XLA for TPUs writes products as convolutions, batched ones as windows that touch the padding, so
only pairs of a window and a position that exist are counted.
"""

import functools
import math
import re

from jaxlm.plan.hlo import Array, Computation, Module, Op


def product_flops(module: Module, computation: Computation, op: Op) -> float:
    """Of one scheduled operation with all that is fused into it; one turn."""
    if op.kind in ("dot", "convolution"):
        return _flops(computation, op)
    inside = op.called("calls")
    if op.kind != "fusion" or inside not in module.computations:
        return 0.0
    return fused_flops(module, inside)


def fused_flops(module: Module, name: str) -> float:
    """Of all products in a computation and those it calls."""
    return sum(
        _flops(computation, op)
        for computation, op in module.inside(name)
        if op.kind in ("dot", "convolution")
    )


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
