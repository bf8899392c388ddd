# SPDX-License-Identifier: Apache-2.0
"""The backward kernel against gradients in float64, on cases chosen to hurt.

Every run is in TPU interpret mode: memory that nobody has written is NaN, reads outside of a
buffer raise, and accesses that race are reported.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads
        H width of q and k  V width of v
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import reference, tpu_backward_kernel
from pallas_kernels.attention.masks import Mask
from pallas_kernels.attention.tpu_backward import backward
from pallas_kernels.attention.tpu_backward_blocks import Blocks
from tests.pallas_kernels.attention import float64
from tests.pallas_kernels.attention.float64 import expected
from tests.reference.compare import quick, relative_error

INTERPRET = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
)
# f32 rounds by 2^-24 = 6e-8; scores, exponentials and two more products are some 30 dependent
# roundings at these sizes.
F32_BOUND = 2e-6
BLOCKS = Blocks(block_kv=256, tile_q=128, block_diag=128, chunk_q=256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(float64.Case):
    is_static: bool = True  # starts are Python ints
    has_d_lse: bool = True
    blocks: Blocks = BLOCKS

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = super().arrays()
        arrays["d_lse"] *= self.has_d_lse
        return {name: array.astype(jnp.bfloat16).astype(float) for name, array in arrays.items()}

    def options(self) -> dict[str, Any]:
        start = lambda x: x if self.is_static else jnp.asarray(x, jnp.int32)
        return {
            "mask": Mask(causal=self.causal, window=self.window),
            "scale": self.scale,
            "softcap": self.softcap,
            "segment_ids": self.ids(),
            "q_start": start(self.q_start),
            "k_start": start(self.k_start),
        }


def run(case: Case, want: dict[str, np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
    """Gradients by q, k, v and, if there are any, sinks, given out and lse as they should be."""
    x = case.arrays() | {"out": want["out"]}
    heads_first = lambda name: jnp.swapaxes(jnp.asarray(x[name], dtype), 1, 2)
    lse, d_lse, sinks = (jnp.asarray(a, jnp.float32) for a in (want["lse"], x["d_lse"], x["sinks"]))
    gradients = functools.partial(
        backward, blocks=case.blocks, interpret=INTERPRET, **case.options()
    )
    *by_tensor, by_sinks = quick(lambda *arrays, sinks: gradients(*arrays, sinks_N=sinks))(
        *map(heads_first, ("q", "k", "v", "out")),
        lse,
        heads_first("d_out"),
        d_lse if case.has_d_lse else None,
        sinks=sinks if case.has_sinks else None,
    )
    found = {n: jnp.swapaxes(grad, 1, 2) for n, grad in zip("qkv", by_tensor, strict=True)}
    assert (by_sinks is None) != case.has_sinks
    found |= {"sinks": by_sinks} if case.has_sinks else {}
    return {name: np.asarray(grad, float) for name, grad in found.items()}


def worst(found: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    """The largest relative error of a gradient; NaN if any is."""
    return np.max([relative_error(grad, want[name]) for name, grad in found.items()])


CASES = {
    "staircase, one sweep, ragged": Case(T=300, N=2, K=2, blocks=Blocks(128, 128, 64, 512)),
    "staircase, grouped heads, chunks": Case(T=300, N=2, K=1, V=8),
    "staircase in a wide window": Case(T=300, window=130, blocks=Blocks(128, 128, 128, 512)),
    "window smaller than a block": Case(T=129, window=5, B=2),
    "window to both sides": Case(T=127, causal=False, window=20, has_d_lse=False),
    "full, ragged, fewer queries": Case(T=129, S=300, causal=False, N=2),
    "runtime starts of each row": Case(
        B=2, T=129, S=300, N=2, K=2, q_start=(171, 3), k_start=1, is_static=False
    ),
    "documents, also of one token": Case(
        B=2, T=300, N=2, K=1, lengths=(1, 1, 1, 125, 128, 44), has_sinks=True, softcap=2.0
    ),
    "queries that see nothing": Case(T=200, k_start=130, N=2, K=2),
    "nothing sees anything": Case(T=5, S=7, k_start=9),
    "nothing sees anything but a sink": Case(T=5, S=7, k_start=9, N=2, has_sinks=True),
    "one token": Case(T=1, has_sinks=True),
    "more keys than one call takes": Case(
        T=300, blocks=Blocks(128, 128, 128, chunk_q=256, chunk_kv=128), N=2
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_float64(name: str):
    """In f32, where a wrong mask, tail or sum cannot hide behind rounding."""
    case = CASES[name]
    want = expected(case, case.arrays())
    assert worst(run(case, want, jnp.float32), want) < F32_BOUND


def xla_gradients(case: Case, dtype: Any) -> dict[str, np.ndarray]:
    x = {name: jnp.asarray(a, dtype) for name, a in case.arrays().items()}

    def f(q, k, v):
        options = {"causal": case.causal, "window": case.window, "segment_ids": case.ids()}
        return reference.attention(q, k, v, scale=case.scale, softcap=case.softcap, **options)

    _, vjp = jax.vjp(f, x["q"], x["k"], x["v"])
    return {n: np.asarray(g, float) for n, g in zip("qkv", vjp(x["d_out"]), strict=True)}


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.slow)], ids=str
)
def test_error_is_no_larger_than_that_of_xla(dtype: Any):
    """Same computation, same dtype of inputs; both against float64.

    The tenth is for dx, which the kernel rounds to bf16 for the matrix unit; XLA on a CPU
    multiplies it in f32.
    """
    case = Case(T=300, N=2, K=1, H=64, V=32, has_d_lse=False)
    want = expected(case, case.arrays())
    ours = worst(run(case, want, dtype), want)
    slack = 1.1 if dtype == jnp.bfloat16 else 1.0
    assert ours <= slack * worst(xla_gradients(case, dtype), want)


def _always_first(ref, rows, is_first):
    return jnp.zeros_like(ref[rows, :])


def _never_first(ref, rows, is_first):
    return ref[rows, :]


def _strictly_causal(mask, q, k, *ids):
    return q > k


def _without_ids(mask, q, k, *ids):
    return q >= k


@pytest.mark.parametrize(
    ("function", "mutant", "name"),
    [
        ("_sum", _always_first, "staircase, one sweep, ragged"),
        ("_sum", _never_first, "staircase, one sweep, ragged"),
        ("_clear", lambda ref, rows: None, "staircase, grouped heads, chunks"),
        ("tile_mask", _strictly_causal, "staircase, one sweep, ragged"),
        ("tile_mask", _without_ids, "documents, also of one token"),
        ("tile_mask", lambda *args: None, "window smaller than a block"),
        ("LOG2_E", 1.0, "one token"),
    ],
)
@pytest.mark.slow
def test_mutants_are_caught(function: str, mutant: Any, name: str, monkeypatch: pytest.MonkeyPatch):
    """The cases above can fail: each wrong line is seen by at least one of them."""
    monkeypatch.setattr(tpu_backward_kernel, function, mutant)
    case = CASES[name]
    want = expected(case, case.arrays())
    assert not worst(run(case, want, jnp.float32), want) < 100 * F32_BOUND


FEATURES: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 37},
    "window, both sides": {"window": 150, "causal": False},
    "runtime starts": {"is_static": False, "q_start": 40, "k_start": 21},
    "documents": {"lengths": (1, 126, 1, 2, 870)},
}


@pytest.mark.slow
@pytest.mark.parametrize("has_scores", [False, True], ids=["plain", "softcap and sinks"])
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize(("T", "S"), [(1, 1), (127, 127), (129, 129), (1000, 1000), (129, 1000)])
def test_product_of_features(T: int, S: int, feature: str, has_scores: bool):
    extra: dict[str, Any] = {"softcap": 3.0, "has_sinks": True} if has_scores else {}
    chosen = dict(FEATURES[feature])
    if "lengths" in chosen:
        documents = np.cumsum(chosen["lengths"])
        lengths = np.diff(np.minimum(documents, S), prepend=0)
        chosen["lengths"] = tuple(int(n) for n in lengths if n)
    blocks = Blocks(block_kv=256, tile_q=256, block_diag=128, chunk_q=512)
    case = Case(T=T, S=S, N=2, K=1 + has_scores, H=24, V=16, blocks=blocks, **chosen, **extra)
    want = expected(case, case.arrays())
    assert worst(run(case, want, jnp.float32), want) < 2 * F32_BOUND
