# SPDX-License-Identifier: Apache-2.0
"""The embedding's look-up and its gradient.

Legend: B batch  T positions  D model width  V vocabulary
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.embed import Embed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_frequent_token_is_a_sum_in_float32(dtype):
    """4096 times the same token: a sum in bf16 would stop growing at 256."""
    embed = Embed(3, 2, is_tied=True, dtype=jnp.dtype(dtype))
    tokens_BT = np.ones((4, 1024), np.int32)
    params = {"table": jnp.ones((3, 2))}

    def total(params):
        return jnp.sum(embed.apply({"params": params}, tokens_BT).astype(jnp.float32))

    np.testing.assert_array_equal(jax.grad(total)(params)["table"], [[0, 0], [4096, 4096], [0, 0]])


def test_every_token_gets_its_row_in_the_compute_dtype():
    table_VD = np.arange(10, dtype=np.float32).reshape(5, 2)
    tokens_BT = np.array([[4, 0, 0], [1, 2, 3]])
    embed = Embed(5, 2, is_tied=True, dtype=jnp.dtype("bfloat16"))
    x_BTD = embed.apply({"params": {"table": table_VD}}, tokens_BT)
    assert x_BTD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(x_BTD.astype(np.float32), table_VD[tokens_BT])
