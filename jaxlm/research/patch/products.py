# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a traced program's matrix products, every turn of a loop counted.

XLA's own count takes a loop's body once, and elementwise work with it: on a tiny model a soft cap then
costs a tenth, on any that is worth a campaign nothing.  What is not a product shows in processor time.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax


def product_flops(jaxpr: Any) -> float:
    """Two per multiplication and addition; the dearest branch of a choice; an open-ended loop counts once."""
    return float(sum(_flops(equation) for equation in jaxpr.eqns))


def _flops(equation: Any) -> float:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        lhs, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2.0 * math.prod(out) * math.prod(lhs[dim] for dim in contracted)
    inner = [product_flops(jaxpr) for jaxpr in _inner(equation)]
    if equation.primitive.name == "cond":
        return max(inner, default=0.0)
    return equation.params.get("length", 1) * sum(inner)  # of a scan


def _inner(equation: Any) -> Iterator[Any]:
    """Programs that an equation holds: of calls, loops, branches, checkpoints."""
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
        if _is_program(value):
            yield getattr(value, "jaxpr", value)


def _is_program(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
