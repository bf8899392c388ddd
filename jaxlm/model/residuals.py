# SPDX-License-Identifier: Apache-2.0
"""What a backward pass finds stored, counted on shapes alone: nothing is allocated or computed."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm.core.types import Params


def saved_bytes(loss: Callable[..., jax.Array], params: Params, *inputs: Any) -> int:
    """Bytes that differentiating `loss(params, *inputs)` stores between its two passes.

    `params` and `inputs` may be abstract.  Parameters and inputs themselves are not counted.  This is
    what JAX hands to the compiler, which may still compute cheap values again instead of storing them.
    """

    def residuals(params: Params, *inputs: Any) -> Any:
        return jax.vjp(lambda p: loss(p, *inputs), params)[1]

    jaxpr = jax.make_jaxpr(residuals)(params, *inputs).jaxpr
    given = set(jaxpr.invars)
    variables = (v for v in jaxpr.outvars if not hasattr(v, "val"))  # the others are literals
    stored = {v for v in variables if v not in given}
    return sum(int(np.prod(v.aval.shape)) * v.aval.dtype.itemsize for v in stored)
