# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a traced program's matrix products, every turn of a loop counted.

XLA's own count takes a loop's body once, and elementwise work with it: on a tiny model a soft cap then
costs a tenth, on any that is worth a campaign nothing.  What is not a product shows in processor time.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax


def product_flops(jaxpr: Any) -> float:
    """Two per multiplication and addition; the dearest branch of a choice; an open-ended loop counts once."""
    return float(sum(_flops(equation) for equation in jaxpr.eqns))


def _flops(equation: Any) -> float:
    if equation.primitive.name == "dot_general":
        return _product(equation, equation.params["dimension_numbers"])
    if equation.primitive.name == "ragged_dot_general":  # of experts: each row meets one group
        dims = equation.params["ragged_dot_dimension_numbers"]
        return _product(equation, dims.dot_dimension_numbers, dims.rhs_group_dimensions)
    inner = [product_flops(jaxpr) for jaxpr in _inner(equation)]
    if equation.primitive.name == "cond":
        return max(inner, default=0.0)
    return equation.params.get("length", 1) * sum(inner)  # of a scan


def _product(equation: Any, dimension_numbers: Any, groups: Sequence[int] = ()) -> float:
    """Every element of the left meets all that the right has beside shared dimensions."""
    (_, contracted), (_, batch) = dimension_numbers
    lhs, rhs = (variable.aval.shape for variable in equation.invars[:2])
    shared = {*contracted, *batch, *groups}
    return 2.0 * math.prod(lhs) * math.prod(n for i, n in enumerate(rhs) if i not in shared)


def _inner(equation: Any) -> Iterator[Any]:
    """Programs that an equation holds: of calls, loops, branches, checkpoints."""
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
        if _is_program(value):
            yield getattr(value, "jaxpr", value)


def _is_program(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
