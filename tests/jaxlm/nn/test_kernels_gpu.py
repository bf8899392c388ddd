# SPDX-License-Identifier: Apache-2.0
"""On a mesh of GPUs attention has a kernel and the loss has none."""

import jax
import jax.numpy as jnp
import pytest

from jaxlm.nn import kernels
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.train.setup import on_mesh


@pytest.fixture(autouse=True)
def _mesh_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "mesh_chip", lambda: "h100")


def test_the_choice_is_recorded():
    found = kernels.chosen("auto", "auto", rows=8, T=1024, V=128256)
    assert found == {"attention": "pallas", "loss": "xla", "chip": "h100"}
    assert kernels.chosen("auto", "auto", rows=1, T=128, V=256)["loss"] == "reference"
    assert kernels.chosen("xla", "auto", rows=8, T=1024, V=256)["attention"] == "xla"


def test_a_kernel_of_the_loss_is_refused():
    with pytest.raises(ValueError, match="loss impl 'pallas' cannot run: the mesh is of h100 dev"):
        kernels.chosen("auto", "pallas", rows=8, T=1024, V=256)


def test_attention_is_mapped_over_the_mesh_with_the_gpu_kernel_inside():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2), jax.devices())
    q, k, v = (jax.ShapeDtypeStruct((4, 256, n, 64), jnp.bfloat16) for n in (4, 2, 2))

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return kernels.attention(q, k, v, segment_ids_BT=None, sinks_N=None, impl="auto")

    with on_mesh(mesh):
        program = str(jax.make_jaxpr(run)(q, k, v))
    assert "shard_map" in program and "name=attention_forward" in program
    assert "bf16[1,256,2,64]" in program  # rows over data and fsdp, heads over model
