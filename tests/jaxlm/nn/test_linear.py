# SPDX-License-Identifier: Apache-2.0
"""Products with parameters of several dimensions against NumPy's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.linear import linear
from tests.reference.compare import in_float64, relative_error


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "num_inputs"),
    [
        ((2, 5, 7), (7, 3, 4), 1),
        ((2, 5, 3, 4), (3, 4, 7), 2),
        ((7,), (7, 1), 1),
        ((0, 7), (7, 2), 1),
    ],
    ids=str,
)
def test_the_last_dimensions_meet_the_first(x_shape, w_shape, num_inputs):
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (x_shape, w_shape))
    expected = np.tensordot(*in_float64((x, w)), axes=num_inputs)
    assert relative_error(linear(x, w, num_inputs), expected) < 1e-6


def test_bfloat16_products_and_their_gradients_are_summed_in_float32():
    """4000 terms near 1, of which a sum in bf16 would keep 256; the result is rounded once, 2^-9."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(1, 0.1, shape), jnp.bfloat16)
    x, w, dy = draw(3, 4000), draw(4000, 2), draw(3, 2)
    assert relative_error(linear(x, w), in_float64(x) @ in_float64(w)) < 2.0**-8
    x, w, dy = draw(4000, 3), draw(3, 2), draw(4000, 2)
    (dw,) = jax.vjp(lambda w: linear(x, w), w)[1](dy)
    assert relative_error(dw, in_float64(x).T @ in_float64(dy)) < 2.0**-8


def test_one_device_multiplies_two_matrices():
    """On CPU a product of three dimensions made a small model's update a seventh slower."""
    x, w = jnp.ones((2, 5, 3, 4)), jnp.ones((3, 4, 7))
    backward = lambda x, w: jax.vjp(lambda x, w: linear(x, w, 2), x, w)[1](jnp.ones((2, 5, 7)))
    products = [e for e in jax.make_jaxpr(backward)(x, w).eqns if e.primitive.name == "dot_general"]
    assert len(products) == 3
    assert all(v.aval.ndim == 2 for product in products for v in product.invars)
