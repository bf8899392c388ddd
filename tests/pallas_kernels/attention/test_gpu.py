# SPDX-License-Identifier: Apache-2.0
"""Which GPUs run the attention kernel, and, where there is one, that it is right on it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.api import attention
from pallas_kernels.attention.specs import FEATURES, Spec
from pallas_kernels.tuning.chips import chip_of, gpu_of, running_gpu
from tests.reference.compare import relative_error


@pytest.mark.parametrize(
    ("device_kind", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A10G", "l4"),
        ("NVIDIA L40S", "l4"),
        ("Tesla V100-SXM2-16GB", None),
        ("Tesla T4", None),
        ("TPU v4", None),
        ("cpu", None),
    ],
)
def test_gpus_are_known_by_their_device_kind(device_kind: str, gpu: str | None):
    assert gpu_of(device_kind) == gpu
    assert chip_of(device_kind) is None


def shapes(dtype: Any, H: int = 64) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((1, 128, n, H), dtype) for n in (2, 1, 1)]


@pytest.mark.parametrize("impl", ["auto", "pallas"])
def test_a_named_gpu_gets_its_kernel(impl: Any):
    def run(*arrays):
        return attention(*arrays, impl=impl, chip="h100")

    assert "attention_forward" in str(jax.make_jaxpr(run)(*shapes(jnp.float16)))


def test_refusals_are_one_line():
    for arrays, message in (
        (shapes(jnp.int8), "q, k and v are int8; allowed: float16 or bfloat16 or float32"),
        (shapes(jnp.bfloat16, 512), "heads are 512 and 512 wide; allowed: to 256"),
    ):
        with pytest.raises(ValueError, match=f"^attention impl 'pallas' cannot run: {message}"):
            jax.eval_shape(lambda *a: attention(*a, impl="pallas", chip="h100"), *arrays)


def problem(spec: Spec) -> tuple[Any, ...]:
    """q, k, v, d_out and the options, of at most 2,048 positions."""
    rng = np.random.default_rng(0)
    T, S = min(spec.T, 2048), min(spec.num_keys, 2048)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), spec.dtype)
    q, k = draw(spec.B, T, spec.N, spec.H), draw(spec.B, S, spec.K, spec.H)
    v, d_out = draw(spec.B, S, spec.K, spec.value_width), draw(spec.B, T, spec.N, spec.value_width)
    ids = jnp.asarray(np.sort(rng.integers(0, 5, (spec.B, S)), axis=1), jnp.int32)
    options: dict[str, Any] = dict(
        causal=spec.causal,
        window=spec.window,
        softcap=spec.softcap,
        segment_ids=(ids[:, -T:], ids) if spec.has_ids else None,
        sinks_N=draw(spec.N).astype(jnp.float32) if spec.has_sinks else None,
        q_offset=jnp.asarray(S - T) if spec.has_offsets else 0,
    )
    return q, k, v, d_out, options


@pytest.mark.device
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # jax 0.12
@pytest.mark.skipif(running_gpu() is None, reason="needs an NVIDIA GPU that the kernel knows")
@pytest.mark.parametrize("spec", FEATURES.values(), ids=FEATURES)
def test_on_this_gpu_the_kernel_agrees_with_the_definition(spec: Spec):
    """In f32 from the same rounded inputs; and with jax's own attention where it can do the same."""
    q, k, v, d_out, options = problem(spec)

    def gradients(f: Any, *arrays: jax.Array) -> list[jax.Array]:
        out, vjp = jax.vjp(f, *arrays)
        return [out, *vjp(d_out.astype(out.dtype))]

    ours = jax.jit(lambda *a: gradients(lambda *a: attention(*a, impl="pallas", **options), *a))(
        q, k, v
    )
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    with jax.default_matmul_precision("highest"):
        want = gradients(lambda *a: attention(*a, impl="reference", **options), *wide)
    has_scores = spec.softcap or spec.has_ids or spec.has_sinks or spec.has_offsets
    want_too = want
    if (
        not has_scores
        and spec.window is None
        and spec.value_width == spec.H
        and q.shape[1] == k.shape[1]
    ):
        f = lambda *a: jax.nn.dot_product_attention(*a, is_causal=spec.causal)
        want_too = gradients(f, q, k, v)
    bound = 1e-5 if spec.dtype == "float32" else 2.0**-6
    for found, first, second in zip(ours, want, want_too, strict=True):
        assert relative_error(found, first) < bound
        assert relative_error(found, second) < 2 * bound
