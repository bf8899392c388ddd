# SPDX-License-Identifier: Apache-2.0
"""Kernels mapped over a mesh by hand give what one device gives: values and gradients.

Legend: R rows  D width  V vocabulary  B batch  T positions  N query heads
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn import kernels
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import ROWS, spec
from jaxlm.train.setup import on_mesh
from pallas_kernels.attention import reference

MESHES = [
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "fsdp": 2, "model": 2},
    {"fsdp": 4, "model": 2},
    {"model": 2},
    {"slice": 2, "expert": 2, "model": 2},
    {"pipeline": 2, "fsdp": 2, "context": 2},
]


def mesh_of(sizes: dict[str, int]) -> jax.sharding.Mesh:
    devices = jax.devices()[: math.prod(sizes.values())]
    return make_mesh(MeshConfig(**{"data": 1} | sizes), devices)


def close(found, expected) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


R, D, V = 64, 16, 40
RNG = np.random.default_rng(0)
X_RD, TABLE_VD = (RNG.normal(size=(n, D)).astype(np.float32) for n in (R, V))
TARGETS_R, WEIGHTS_R = RNG.integers(V, size=R), (RNG.random(R) > 0.3).astype(np.float32)


def loss_of_whole_logits(x_RD, table_VD):
    z_RV = 5.0 * jnp.tanh(x_RD @ table_VD.T / 5.0)
    lse_R = jnp.log(jnp.exp(z_RV).sum(1))
    loss = jnp.sum(WEIGHTS_R * (lse_R - z_RV[jnp.arange(R), TARGETS_R] + 0.1 * lse_R**2))
    return loss, jnp.sum(WEIGHTS_R * (z_RV.argmax(1) == TARGETS_R))


def loss_of_shards(x_RD, table_VD):
    B, T = 16, 4
    rows = (x_RD.reshape(B, T, D), table_VD, TARGETS_R.reshape(B, T), WEIGHTS_R.reshape(B, T))
    found = kernels.linear_cross_entropy(*rows, softcap=5.0, z_loss=0.1, impl="auto")
    return found.loss, found.correct


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_the_loss_of_shards_is_that_of_the_whole(shape) -> None:
    """Rows over all that splits batch and sequence, the vocabulary over model, the table's width
    over what splits parameters: each axis has to enter the sums of the loss and of its gradient."""
    mesh = mesh_of(shape)
    place = lambda a, axes: jax.device_put(a, jax.NamedSharding(mesh, axes))
    with on_mesh(mesh):
        arrays = place(X_RD, jax.P(ROWS[0])), place(TABLE_VD, spec(("vocab", "embed")))
        trained = jax.jit(jax.value_and_grad(loss_of_shards, (0, 1), has_aux=True))(*arrays)
        evaluated = jax.jit(loss_of_shards)(*arrays)
    whole = jax.value_and_grad(loss_of_whole_logits, (0, 1), has_aux=True)(X_RD, TABLE_VD)
    close(trained, whole)
    close(evaluated, whole[0])


@pytest.mark.parametrize("shape", [sizes for sizes in MESHES if "context" not in sizes], ids=str)
def test_attention_of_shards_is_that_of_the_whole(shape, monkeypatch) -> None:
    """As on a TPU, with the definition in the kernel's place."""
    rng = np.random.default_rng(0)
    B, T, N, K, H = 8, 9, 4, 2, 8
    q, k, v = (rng.normal(size=(B, T, n, H)).astype(np.float32) for n in (N, K, K))
    ids, sinks = np.repeat([[0, 1, 1]], B, 0).repeat(3, 1), rng.normal(size=N).astype(np.float32)
    weights = rng.normal(size=(B, T, N, H)).astype(np.float32)

    def whole(q, k, v, sinks):
        options = dict(scale=H**-0.5, window=4, softcap=3.0, segment_ids=(ids, ids))
        return jnp.sum(weights * reference.attention(q, k, v, sinks_N=sinks, **options))

    def sharded(q, k, v, sinks):
        options = dict(window=4, softcap=3.0, impl="reference")
        out = kernels.attention(q, k, v, segment_ids_BT=ids, sinks_N=sinks, **options)
        return jnp.sum(weights * out)

    monkeypatch.setattr(kernels, "mesh_chip", lambda: "v6e")
    with on_mesh(mesh_of(shape)):
        found = jax.jit(jax.value_and_grad(sharded, (0, 1, 2, 3)))(q, k, v, sinks)
    close(found, jax.value_and_grad(whole, (0, 1, 2, 3))(q, k, v, sinks))
