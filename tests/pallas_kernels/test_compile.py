# SPDX-License-Identifier: Apache-2.0
"""Every kernel and every feature through the TPU's own compiler, which needs no TPU."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.bench.schedule import TOPOLOGY
from pallas_kernels.attention.api import attention
from pallas_kernels.attention.specs import FEATURES, Spec
from pallas_kernels.cross_entropy.api import choose, forward, linear_cross_entropy
from pallas_kernels.cross_entropy.rows import Task
from pallas_kernels.grouped_matmul.api import grouped_matmul

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
CHIPS = list(TOPOLOGY)


def described(chip: str) -> Any:
    """Devices of a TPU that need not be there."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'jaxlm[tpu]'")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY[chip]).devices


def compiled(
    chip: str,
    function: Any,
    *arrays: tuple[tuple[int, ...], str],
    has_gradients: bool = True,
    num_devices: int = 1,
) -> str:
    """The optimised program of a function and its gradients by its first two arguments.

    Of several devices each has a slice of the second argument, along the axis "chip".
    """
    mesh, everywhere = Mesh(np.array(described(chip)[:num_devices]), ("chip",)), PartitionSpec()
    specs = [everywhere] * len(arrays)
    if num_devices > 1:
        specs[1] = PartitionSpec("chip")
    out_specs = (everywhere, (everywhere, specs[1])) if has_gradients else everywhere
    whole = jax.shard_map(
        jax.value_and_grad(function, (0, 1)) if has_gradients else function,
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=out_specs,
        check_vma=False,
    )
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for (shape, dtype), spec in zip(arrays, specs, strict=True)
    ]
    return jax.jit(whole).lower(*shapes).compile().as_text()


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("spec", FEATURES.values(), ids=FEATURES)
def test_attention(chip: str, spec: Spec) -> None:
    S, f32 = spec.num_keys, jnp.float32

    def loss(q, k, v, q_ids, k_ids, sinks, offset):
        out, lse = attention(
            q, k, v, causal=spec.causal, window=spec.window, softcap=spec.softcap,
            segment_ids=(q_ids, k_ids) if spec.has_ids else None,
            sinks_N=sinks if spec.has_sinks else None,
            q_offset=offset if spec.has_offsets else 0,
            return_lse=True, impl="pallas", chip=chip,
        )  # fmt: skip
        return jnp.sum(out.astype(f32) ** 2) + jnp.sum(jnp.where(lse > -jnp.inf, lse, 0.0))

    program = compiled(
        chip,
        loss,
        ((spec.B, spec.T, spec.N, spec.H), spec.dtype),
        ((spec.B, S, spec.K, spec.H), spec.dtype),
        ((spec.B, S, spec.K, spec.value_width), spec.dtype),
        ((spec.B, spec.T), "int32"),
        ((spec.B, S), "int32"),
        ((spec.N,), "float32"),
        ((), "int32"),
    )
    assert "attention_forward" in program
    assert "attention_backward" in program


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
    ("sizes", "dtype", "options"),
    [
        ((300, 256, 1536), "bfloat16", {}),
        ((300, 200, 1000), "bfloat16", {"softcap": 30.0, "num_valid": 900, "z_loss": 0.1}),
        ((130, 256, 1024), "float32", {"softcap": 5.0}),
    ],
    ids=["plain", "ragged", "float32"],
)
def test_cross_entropy(chip: str, sizes: tuple[int, ...], dtype: str, options: Any) -> None:
    R, D, V = sizes

    def loss(x, table, targets, weights):
        options_ = options | {"impl": "pallas", "chip": chip}
        return linear_cross_entropy(x, table, targets, weights, **options_).loss

    rows = ((R,), "int32"), ((R,), "float32")
    assert "tpu_custom_call" in compiled(chip, loss, ((R, D), dtype), ((V, D), "float32"), *rows)


@pytest.mark.parametrize("chip", CHIPS)
def test_cross_entropy_of_a_bfloat16_table(chip: str) -> None:
    def loss(x, table, targets, weights):
        return linear_cross_entropy(x, table, targets, weights, impl="pallas", chip=chip).loss

    arrays = ((300, 256), "bfloat16"), ((1536, 256), "bfloat16"), ((300,), "int32")
    assert "tpu_custom_call" in compiled(chip, loss, *arrays, ((300,), "float32"))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("num_devices", [1, 2], ids=["whole", "sharded"])
def test_cross_entropy_statistics_alone(chip: str, num_devices: int) -> None:
    """What evaluation runs, also where each device has a slice of the vocabulary."""

    def loss(x, table, targets, weights):
        axis = "chip" if num_devices > 1 else None
        task = Task(None, jnp.float32(0), 1400, axis)
        how = choose("pallas", chip, x, table)
        return forward(x, table, targets, weights, task, how).loss

    arrays = ((300, 256), "bfloat16"), ((1536, 256), "float32"), ((300,), "int32")
    program = compiled(
        chip, loss, *arrays, ((300,), "float32"), has_gradients=False, num_devices=num_devices
    )
    assert "tpu_custom_call" in program


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [((512, 256, 384, 4), "bfloat16"), ((500, 200, 300, 3), "bfloat16"), ((300, 200, 300, 3), "float32")],
    ids=["plain", "ragged", "float32"],
)  # fmt: skip
def test_grouped_matmul(chip: str, sizes: tuple[int, ...], dtype: str) -> None:
    R, D, F, E = sizes

    def loss(x, w, group_sizes):
        y = grouped_matmul(x, w, group_sizes, impl="pallas", chip=chip)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    arrays = ((R, D), dtype), ((E, D, F), dtype), ((E,), "int32")
    assert compiled(chip, loss, *arrays).count("tpu_custom_call") >= 3
