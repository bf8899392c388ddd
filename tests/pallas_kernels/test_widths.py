# SPDX-License-Identifier: Apache-2.0
"""Models too wide for a kernel's vector memory: `auto` goes without it, "pallas" is refused.

Legend: R rows  D width  V vocabulary  E groups  F other width
"""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.cross_entropy import api as loss_api
from pallas_kernels.grouped_matmul import api as grouped_api
from pallas_kernels.tuning import cross_entropy, grouped_matmul

CHIPS = ("v5e", "v5p", "v6e", "tpu7x")


def array(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("item_bytes", "table_bytes"), [(2, 2), (2, 4), (4, 4)])
def test_the_widest_loss_has_blocks_and_a_wider_one_none(chip, item_bytes, table_bytes):
    widest = cross_entropy.max_width(chip, item_bytes, table_bytes)
    sizes = 8192, 128256
    assert cross_entropy.config(chip, *sizes, widest, item_bytes, table_bytes).rows == 128
    with pytest.raises(ValueError, match=f"too much for the vector memory of {chip}"):
        cross_entropy.config(chip, *sizes, widest + 1, item_bytes, table_bytes)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("F", [64, 4096])
def test_the_widest_product_has_blocks_and_a_wider_one_none(chip, F):
    widest = grouped_matmul.max_width(chip, F, 2)
    assert grouped_matmul.product_blocks(chip, 8192, widest, F, 8, 2).rows == 128
    with pytest.raises(ValueError, match=f"too much for the vector memory of {chip}"):
        grouped_matmul.product_blocks(chip, 8192, widest + 1, F, 8, 2)


def test_the_loss_of_a_wide_model_goes_without_the_kernel():
    """That of the 405B model, on a chip with little vector memory."""
    x_RD, table_VD = array(4096, 16384), array(128256, 16384)
    assert loss_api.choose("auto", "tpu7x", x_RD, table_VD) == "xla"
    assert isinstance(loss_api.choose("auto", "v6e", x_RD, table_VD), cross_entropy.Config)
    widest = cross_entropy.max_width("tpu7x", 2, 2)
    message = f"x has a width of 16384; cross-entropy impl 'pallas' on tpu7x allows .* {widest}"
    with pytest.raises(ValueError, match=message):
        loss_api.choose("pallas", "tpu7x", x_RD, table_VD)


@pytest.mark.parametrize(("D", "F"), [(65536, 256), (256, 65536)])
def test_wide_experts_go_without_the_kernel(D, F):
    """Too wide for the product itself, or for its gradient alone."""
    arrays = array(512, D), array(4, D, F), array(4, dtype="int32")

    def loss(x_RD, w_EDF, sizes_E, impl="auto"):
        y_RF = grouped_api.grouped_matmul(x_RD, w_EDF, sizes_E, impl=impl, chip="v5p")
        return jnp.sum(y_RF.astype(jnp.float32))

    assert "pallas_call" not in str(jax.make_jaxpr(jax.grad(loss))(*arrays))
    with pytest.raises(ValueError, match="w has a width of 65536; grouped matmul impl 'pallas' on"):
        jax.eval_shape(lambda *arrays: loss(*arrays, impl="pallas"), *arrays)
