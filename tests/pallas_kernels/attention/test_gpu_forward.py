# SPDX-License-Identifier: Apache-2.0
"""The GPUs' forward kernel against float64, in Pallas's interpreter.

There outputs that nobody has written are NaN, and so is what a tile covers beyond an array.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H width of q and k
        V width of v
"""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import gpu, gpu_forward, gpu_tiles
from pallas_kernels.attention.masks import Mask
from pallas_kernels.tuning.attention_gpu import AttentionBlocks, Blocks
from tests.pallas_kernels.attention.float64 import Case, expected
from tests.reference.compare import quick, relative_error
from tests.reference.covering import covering

# f32 rounds by 2^-24 = 6e-8; scores, exponentials and a sum of some hundred terms are some 30
# dependent roundings at these sizes.
F32_BOUND = 2e-6
TALL, WIDE = Blocks(64, 16, 4, 2), Blocks(16, 64, 4, 2)


def run(case: Case, dtype: Any, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    x = {name: jnp.asarray(array, dtype) for name, array in case.arrays().items()}
    start = case.q_start if isinstance(case.q_start, int) else jnp.asarray(case.q_start)
    kernels = AttentionBlocks(blocks, blocks, blocks)
    options = gpu.Options(
        Mask(case.causal, case.window), case.scale, case.softcap, "h100", True, kernels
    )

    def f(q, k, v, sinks):
        return gpu.attention(q, k, v, sinks, case.ids(), start, case.k_start, None, options)

    out, lse = quick(f)(x["q"], x["k"], x["v"], x["sinks"] if case.has_sinks else None)
    assert out.dtype == dtype and lse.dtype == jnp.float32
    return np.asarray(out, np.float64), np.asarray(lse, np.float64)


def check(case: Case, blocks: Blocks = TALL, bound: float = F32_BOUND) -> None:
    (out, lse), want = run(case, jnp.float32, blocks), expected(case, case.arrays())
    is_seen = np.isfinite(want["lse"])
    assert (lse[~is_seen] == -np.inf).all()
    assert relative_error(out, want["out"]) < bound
    lse_error = np.abs(lse[is_seen] - want["lse"][is_seen])
    assert np.max(lse_error, initial=0.0) < bound * case.spread**2


CASES = {  # beside those of test_gpu_backward.py
    "one_less": (Case(T=127, N=2), WIDE),
    "one_more_and_a_narrow_window": (Case(T=129, window=5, has_sinks=True), TALL),
    "one_query_of_many_keys": (Case(T=1, S=200, q_start=199), WIDE),
    "more_keys_than_queries": (Case(T=100, S=200, causal=False, N=4, K=1), TALL),
    "documents_of_one_token": (
        Case(B=2, T=200, lengths=(100, 1, 1, 98), window=70, spread=20.0),
        WIDE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_out_and_lse_agree_with_float64(name: str):
    case, blocks = CASES[name]
    # a score of size s is off by s * 2^-24, and so is its exponential
    check(case, blocks, F32_BOUND * max(1.0, case.spread**2 / 50))


@pytest.mark.parametrize(("dtype", "bits"), [(jnp.bfloat16, 8), (jnp.float16, 11)], ids=str)
def test_the_error_is_that_of_two_roundings(dtype: Any, bits: int):
    """Probabilities and the result are rounded by 2^-(bits + 1) each; lse has f32's accuracy."""
    case = Case(T=129, H=64, V=64)
    x = {name: np.asarray(jnp.asarray(a, dtype), np.float64) for name, a in case.arrays().items()}
    (out, lse), want = run(case, dtype, TALL), expected(case, x)
    assert relative_error(out, want["out"]) < 2.0**-bits
    assert np.max(np.abs(lse - want["lse"])) < 2e-5


def _no_rescaling(fold: Any) -> Any:
    def fold_(plan: Any, state: Any, higher: Any, *tile: Any) -> Any:
        return fold(plan, (*state[:2], higher), higher, *tile)

    return fold_


MUTATIONS = {
    "no rescaling": (gpu_forward, "_fold", _no_rescaling),
    "no mask": (gpu_tiles, "hide", lambda f: lambda scores, is_seen: scores),
    "edge of the mask off by one": (
        gpu_tiles,
        "tile_mask",
        lambda f: lambda m, q, k, *ids: f(m, q + 1, k, *ids),
    ),
    "segment ids dropped": (gpu_tiles, "tile_mask", lambda f: lambda m, q, k, *ids: f(m, q, k)),
    "tails not cut off": (gpu_tiles, "_inside", lambda f: lambda *args: None),
    "sink twice as large": (gpu_forward, "LOG2_E", lambda x: 2 * x),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutated_kernels_fail(name: str, monkeypatch: pytest.MonkeyPatch):
    module, attribute, change = MUTATIONS[name]
    monkeypatch.setattr(module, attribute, change(getattr(module, attribute)))
    with pytest.raises(AssertionError):
        check(Case(T=50, lengths=(30, 20), spread=3.0, has_sinks=True))


def test_a_tail_of_keys_that_is_seen_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_tiles, "visible", lambda *args, **options: None)
    with pytest.raises(AssertionError):
        check(Case(T=20, S=40, causal=False))


FEATURES: dict[str, list[Any]] = {
    "sizes": [(1, 1), (127, 127), (129, 129), (200, 300)],  # T and S
    "window": [None, 5, 100],
    "causal": [True, False],
    "has_documents": [False, True],
    "softcap": [None, 3.0],
    "has_sinks": [False, True],
    "blocks": [TALL, WIDE],
}


def _brief(case: dict[str, Any]) -> str:
    tall_or_wide = "tall" if case["blocks"] == TALL else "wide"
    return "-".join(map(str, (*case["sizes"], *list(case.values())[1:-1], tall_or_wide)))


@pytest.mark.slow
@pytest.mark.parametrize("case", covering(3, FEATURES), ids=_brief)
def test_features_together(case: dict[str, Any]):
    """Any three of them meet in every way."""
    (T, S), options = (
        case["sizes"],
        {n: case[n] for n in ("window", "causal", "softcap", "has_sinks")},
    )
    lengths = (S // 3, 1, S - S // 3 - 1) if case["has_documents"] and S > 2 else None
    check(Case(T=T, S=S, N=2, q_start=S - T, lengths=lengths, **options), case["blocks"])


def test_all_tiles_of_the_table_are_powers_of_two():
    from pallas_kernels.tuning.attention_gpu import attention_blocks
    from pallas_kernels.tuning.chips import GPUS

    for chip, T, S, H, V, itemsize in itertools.product(
        GPUS, (1, 129, 4096), (1, 200, 4096), (64, 192, 256), (16, 128, 256), (2, 4)
    ):
        kernels = attention_blocks(chip, T, S, H, V, itemsize)
        for blocks in (kernels.forward, kernels.d_queries, kernels.d_keys):
            for size, most in ((blocks.queries, T), (blocks.keys, S)):
                assert size & (size - 1) == 0 and 16 <= size < max(17, 2 * most)
