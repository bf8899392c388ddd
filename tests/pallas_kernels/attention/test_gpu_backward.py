# SPDX-License-Identifier: Apache-2.0
"""The GPUs' backward kernels against gradients in float64, in Pallas's interpreter.

There outputs that nobody has written are NaN, and so is what a tile covers beyond an array.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H width of q and k
        V width of v
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import gpu, gpu_backward, gpu_tiles, reference
from pallas_kernels.attention.masks import Mask
from pallas_kernels.tuning.attention_gpu import AttentionBlocks, Blocks
from tests.pallas_kernels.attention.float64 import Case, expected
from tests.reference.compare import quick, relative_error
from tests.reference.covering import covering

# f32 rounds by 2^-24 = 6e-8; scores, exponentials and two more products are some 30 dependent
# roundings at these sizes.
F32_BOUND = 2e-6
TALL, WIDE = Blocks(64, 16, 4, 2), Blocks(16, 64, 4, 2)
NAMES = ("q", "k", "v", "sinks")  # of what is differentiated by


def run(case: Case, dtype: Any, blocks: Blocks) -> dict[str, jax.Array]:
    """out, lse, and the gradients of sum(out * d_out) + sum(lse * d_lse) through all kernels."""
    x = {name: jnp.asarray(array, dtype) for name, array in case.arrays().items()}
    start = case.q_start if isinstance(case.q_start, int) else jnp.asarray(case.q_start)
    kernels = AttentionBlocks(blocks, blocks, blocks)
    mask = Mask(case.causal, case.window)
    options = gpu.Options(mask, case.scale, case.softcap, "h100", True, kernels)

    def f(q, k, v, sinks):
        sinks = sinks if case.has_sinks else None
        return gpu.attention(q, k, v, sinks, case.ids(), start, case.k_start, None, options)

    def everything(*arrays):
        value, vjp = jax.vjp(f, *arrays)
        return *value, *vjp((x["d_out"], x["d_lse"].astype(jnp.float32)))

    found = quick(everything)(*(x[name] for name in NAMES))
    return dict(zip(("out", "lse", *NAMES), found, strict=True))


def worst(case: Case, blocks: Blocks = TALL) -> float:
    """The largest relative error of out, lse and gradients; NaN if any is."""
    want, got = expected(case, case.arrays()), run(case, jnp.float32, blocks)
    is_seen = np.isfinite(want["lse"])
    assert (got["lse"][~is_seen] == -np.inf).all()
    got["lse"], want["lse"] = got["lse"][is_seen], want["lse"][is_seen]
    errors = {name: relative_error(got[name], want[name]) for name in got}
    errors["sinks"] /= 10  # hundreds of terms that nearly cancel
    return np.max(list(errors.values()))


CASES = {
    "one_position": (Case(T=1, has_sinks=True), TALL),
    "ragged_groups": (Case(T=129, N=4, K=2, H=24, V=40), TALL),
    "whole_blocks_of_all_keys": (Case(T=64, S=128, causal=False), WIDE),
    "narrow_window": (Case(T=127, window=5), WIDE),
    "window_to_both_sides": (Case(T=100, S=150, causal=False, window=20, q_start=30), TALL),
    "queries_that_see_nothing": (
        Case(B=2, T=129, S=200, q_start=(5, -70), k_start=3, N=2),
        TALL,
    ),
    "documents_softcap_sinks": (
        Case(B=2, T=200, N=2, lengths=(100, 1, 1, 98), softcap=2.0, has_sinks=True),
        WIDE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_out_lse_and_gradients_agree_with_float64(name: str):
    assert worst(*CASES[name]) < F32_BOUND


def test_gradients_in_float64_are_those_of_finite_differences():
    """Holds the expectation itself, with every feature in it, to the definition of a gradient."""
    case = Case(T=3, N=2, H=2, V=2, lengths=(1, 2), softcap=2.0, has_sinks=True)
    x = case.arrays() | {"sinks": np.array([0.3, -0.5])}

    def value(name: str, shift: np.ndarray) -> float:
        moved = x | {name: x[name] + shift}
        want = expected(case, moved)
        return float(np.sum(want["out"] * x["d_out"]) + np.sum(want["lse"] * x["d_lse"]))

    want = expected(case, x)
    for name in NAMES:
        direction = np.random.default_rng(1).normal(size=x[name].shape)
        slope = (value(name, 1e-5 * direction) - value(name, -1e-5 * direction)) / 2e-5
        assert abs(slope - np.sum(want[name] * direction)) < 1e-8 * max(1, abs(slope))


@pytest.mark.slow
def test_the_error_in_bfloat16_is_no_larger_than_that_of_xla():
    """But for ds, which the kernels round to bf16 by 2^-9; XLA on a CPU multiplies it in f32."""
    case = Case(T=129, H=64, V=64)
    rounded = {name: jnp.asarray(a, jnp.bfloat16) for name, a in case.arrays().items()}
    x = {name: np.asarray(a, np.float64) for name, a in rounded.items()}
    want = expected(case, x)
    ours = run(case, jnp.bfloat16, TALL)

    def definition(q, k, v):
        return reference.attention(q, k, v, scale=case.scale, return_lse=True)

    _, vjp = jax.vjp(definition, *(rounded[name] for name in NAMES[:3]))
    theirs = vjp((rounded["d_out"], rounded["d_lse"].astype(jnp.float32)))
    for name, other in zip(NAMES, theirs, strict=False):
        assert ours[name].dtype == jnp.bfloat16
        error = relative_error(ours[name], want[name])
        assert error <= np.hypot(relative_error(other, want[name]), 2.0**-9)


MUTATIONS = {
    "no mask": (gpu_tiles, "hide", lambda f: lambda scores, is_seen: scores),
    "edge of the mask off by one": (
        gpu_tiles,
        "tile_mask",
        lambda f: lambda m, q, k, *ids: f(dataclasses.replace(m, window=11), q, k, *ids),
    ),
    "signs of lse and delta lost": (
        gpu_tiles,
        "load_numbers",
        lambda f: lambda ref, *span: jnp.abs(f(ref, *span)),
    ),
    "tails not cut off": (gpu_tiles, "_inside", lambda f: lambda *args: None),
    "lse in nats": (gpu_backward, "LOG2_E", lambda x: 1.0),
    "no gradient of lse": (
        gpu_backward,
        "per_query",
        lambda f: lambda out, lse, d_out, d_lse, sinks: f(out, lse, d_out, 0.0, sinks),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_mutated_kernels_fail(name: str, monkeypatch: pytest.MonkeyPatch):
    case = Case(T=50, window=10, has_sinks=True)
    assert worst(case) < F32_BOUND
    module, attribute, change = MUTATIONS[name]
    monkeypatch.setattr(module, attribute, change(getattr(module, attribute)))
    assert not worst(case) < 100 * F32_BOUND


FEATURES: dict[str, list[Any]] = {
    "sizes": [(1, 1), (127, 127), (129, 129), (200, 300)],  # T and S
    "window": [None, 5, 100],
    "causal": [True, False],
    "has_documents": [False, True],
    "has_scores": [False, True],  # a soft-cap and sinks
    "blocks": [TALL, WIDE],
}


def _brief(case: dict[str, Any]) -> str:
    tall_or_wide = "tall" if case["blocks"] == TALL else "wide"
    return "-".join(map(str, (*case["sizes"], *list(case.values())[1:-1], tall_or_wide)))


@pytest.mark.slow
@pytest.mark.parametrize("case", covering(3, FEATURES), ids=_brief)
def test_features_together(case: dict[str, Any]):
    """Any three of them meet in every way."""
    (T, S), options = case["sizes"], {"window": case["window"], "causal": case["causal"]}
    if case["has_documents"] and S > 2:
        options["lengths"] = (S // 3, 1, S - S // 3 - 1)
    if case["has_scores"]:
        options |= {"softcap": 3.0, "has_sinks": True}
    assert worst(Case(T=T, S=S, N=2, q_start=S - T, **options), case["blocks"]) < 2 * F32_BOUND
