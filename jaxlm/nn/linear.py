# SPDX-License-Identifier: Apache-2.0
"""A matrix product with parameters of several dimensions.

Legend: X leading dimensions of the input  I input dimensions  O output dimensions
"""

import math

import jax

from jaxlm.sharding.rules import is_on_mesh


def linear(x_XI: jax.Array, w_IO: jax.Array, num_inputs: int = 1) -> jax.Array:
    """Contracts the last `num_inputs` dimensions of x with the first of w, in x's dtype.

    As one product of two matrices: on CPU the same einsum over three and four dimensions takes a
    third more time, forward and backward, for transposes that XLA puts around it.  On a mesh the
    leading dimensions stay apart, as each may be split over an axis of its own.
    """
    inputs, outputs = w_IO.shape[:num_inputs], w_IO.shape[num_inputs:]
    leading = x_XI.shape[: x_XI.ndim - num_inputs]
    rows = leading if is_on_mesh() else (math.prod(leading),)
    x_XI = x_XI.reshape(*rows, math.prod(inputs))
    w_IO = w_IO.astype(x_XI.dtype).reshape(math.prod(inputs), math.prod(outputs))
    return (x_XI @ w_IO).reshape(*leading, *outputs)
