# SPDX-License-Identifier: Apache-2.0
"""The embedding's look-up and its gradient.

Legend: B batch  T positions  D model width  V vocabulary
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.embed import Embed
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import ROWS, shardings
from jaxlm.train.setup import on_mesh


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


def test_a_split_table_is_gathered_in_the_compute_dtype_and_its_gradient_summed_in_float32():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    embed = Embed(3, 16, is_tied=True, dtype=jnp.dtype("bfloat16"))
    tokens_BT = np.ones((8, 512), np.int32)
    split = shardings({"table": ("vocab", "embed")}, mesh)
    params = jax.device_put({"table": jnp.ones((3, 16))}, split)

    def total(params):
        return jnp.sum(embed.apply({"params": params}, tokens_BT).astype(jnp.float32))

    with on_mesh(mesh):
        lowered = jax.jit(jax.value_and_grad(total)).lower(params)
        got = lowered.compile()(params)[1]["table"]
    np.testing.assert_array_equal(got, np.outer([0, 4096, 0], np.ones(16)))
    assert got.sharding.is_equivalent_to(split["table"], got.ndim)
    gathered = [line for line in lowered.as_text().splitlines() if "sharding_constraint" in line]
    assert "3x16xbf16" in gathered[0]
    assert "3x16xf32" in gathered[-1]


@pytest.mark.parametrize(
    "sizes",
    [dict(fsdp=8), dict(data=2, fsdp=4), dict(expert=4, model=2)],
)
def test_the_gradient_of_a_split_table_is_summed_where_it_is_kept(sizes):
    """Rows go to the columns' devices; no device sends, or holds, a whole table's gradient."""
    V, D, B, T = 96, 16, 8, 32
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(0, V, (B, T)).astype(np.int32)
    dy_BTD = rng.normal(size=(B, T, D)).astype(np.float32)
    want_VD = np.zeros((V, D), np.float64)
    np.add.at(want_VD, tokens_BT, dy_BTD)
    mesh = make_mesh(MeshConfig(**{"data": 1} | sizes))
    embed = Embed(V, D, is_tied=True, dtype=jnp.dtype("float32"))

    def total(params, tokens_BT, dy_BTD):
        return jnp.sum(embed.apply({"params": params}, tokens_BT) * dy_BTD)

    with on_mesh(mesh):
        split = shardings({"table": ("vocab", "embed")}, mesh)
        params = jax.device_put({"table": jnp.ones((V, D))}, split)
        rows = (jax.device_put(x, jax.NamedSharding(mesh, ROWS)) for x in (tokens_BT, dy_BTD))
        compiled = jax.jit(jax.grad(total), out_shardings=split).lower(params, *rows).compile()
        got = compiled(params, tokens_BT, dy_BTD)["table"]
    np.testing.assert_allclose(got, want_VD, rtol=0, atol=1e-5)
    sums = [line for line in compiled.as_text().splitlines() if " all-reduce(" in line]
    whole = f"f32[{V // mesh.shape['model']},{D}]"
    assert "all-to-all" in compiled.as_text() and not any(whole in line for line in sums)
