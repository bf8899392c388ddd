# SPDX-License-Identifier: Apache-2.0
"""Every feature of the attention kernel through the compiler for NVIDIA GPUs, which needs none."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.nn import kernels
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import spec as sharding_of
from pallas_kernels.attention.api import attention
from pallas_kernels.attention.specs import FEATURES, Spec
from tests.pallas_kernels.gpu_target import TARGETS, target_config

HAS_COMPILER = any(importlib.util.find_spec(f"jax_cuda{x}_plugin") for x in (12, 13))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),  # jax 0.12
    pytest.mark.skipif(not HAS_COMPILER, reason="needs CUDA's compiler: pip install 'jax[cuda13]'"),
]
SPECS = FEATURES | {
    "float16": Spec(T=1024, dtype="float16"),
    "odd_heads": Spec(T=300, H=80, V=48, has_ids=True, has_sinks=True),
    "many_groups": Spec(T=1024, N=32, K=2),
    "float32_of_every_feature": Spec(
        T=300, H=192, V=128, dtype="float32", window=70, softcap=5.0, has_ids=True, has_sinks=True
    ),
    "wide_heads_of_every_feature": Spec(
        T=300, B=2, H=256, window=70, softcap=5.0, has_ids=True, has_sinks=True, has_offsets=True
    ),
}


def devices(chip: str, num: int) -> list[jax.Device]:
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="cuda", target_config=target_config(chip), topology=f"1x{num}x1"
    ).devices


def arrays_of(spec: Spec) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of q, k, v, sinks, both ids and the offset."""
    S = spec.num_keys
    return [
        ((spec.B, spec.T, spec.N, spec.H), spec.dtype),
        ((spec.B, S, spec.K, spec.H), spec.dtype),
        ((spec.B, S, spec.K, spec.value_width), spec.dtype),
        ((spec.N,), "float32"),
        ((spec.B, spec.T), "int32"),
        ((spec.B, S), "int32"),
        ((), "int32"),
    ]


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_attention(chip: str, spec: Spec) -> None:
    def loss(q, k, v, sinks, q_ids, k_ids, offset):
        out, lse = attention(
            q, k, v, causal=spec.causal, window=spec.window, softcap=spec.softcap,
            segment_ids=(q_ids, k_ids) if spec.has_ids else None,
            sinks_N=sinks if spec.has_sinks else None,
            q_offset=offset if spec.has_offsets else 0,
            return_lse=True, impl="pallas", chip=chip,
        )  # fmt: skip
        return jnp.sum(out.astype(jnp.float32) ** 2) + jnp.sum(jnp.where(lse > -jnp.inf, lse, 0.0))

    mesh, everywhere = Mesh(np.array(devices(chip, 1)), ("gpu",)), PartitionSpec()
    whole = jax.shard_map(
        jax.value_and_grad(loss, (0, 1, 2, 3)),
        mesh=mesh,
        in_specs=everywhere,
        out_specs=everywhere,
        check_vma=False,
    )
    sharding = NamedSharding(mesh, everywhere)
    shapes = [jax.ShapeDtypeStruct(s, d, sharding=sharding) for s, d in arrays_of(spec)]
    program = jax.jit(whole).lower(*shapes).compile().as_text()
    for name in ("attention_forward", "attention_backward_dq", "attention_backward_dkv"):
        assert name in program


@pytest.mark.parametrize("chip", ["h100", "a100"])
def test_attention_of_the_model_on_a_mesh(chip: str) -> None:
    """Each of eight GPUs runs the kernel on its own rows and heads, without moving any."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2), devices(chip, 8))

    def run(q, k, v, ids):
        return kernels.attention(q, k, v, segment_ids_BT=ids, sinks_N=None, impl="auto")

    axes = "batch", "seq", "heads", "head_dim"
    heads, ids = (NamedSharding(mesh, sharding_of(a)) for a in (axes, axes[:2]))
    q, k = (jax.ShapeDtypeStruct((8, 512, n, 64), jnp.bfloat16, sharding=heads) for n in (4, 2))
    with jax.set_mesh(mesh):
        lowered = jax.jit(run).lower(q, k, k, jax.ShapeDtypeStruct((8, 512), "int32", sharding=ids))
    program = lowered.compile().as_text()
    assert "attention_forward" in program and "bf16[2,512,2,64]" in program
    assert not any(f" {op}(" in program for op in ("all-gather", "all-reduce", "all-to-all"))
