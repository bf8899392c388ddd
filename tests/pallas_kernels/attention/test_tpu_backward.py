# SPDX-License-Identifier: Apache-2.0
"""The backward kernel against Jacobians in float64, on cases chosen to hurt.

Every run is in TPU interpret mode: memory that nobody has written is NaN, reads outside of a
buffer raise, and accesses that race are reported.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads
        H width of q and k  V width of v
"""

import dataclasses
import functools
import itertools
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
from tests.reference.compare import quick

INTERPRET = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
)
# f32 rounds by 2^-24 = 6e-8; scores, exponentials and two more products are some 30 dependent
# roundings at these sizes.
F32_BOUND = 2e-6
BLOCKS = Blocks(block_kv=256, tile_q=128, block_diag=128, chunk_q=256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    B: int = 1
    T: int = 300
    S: int | None = None  # None: as T
    N: int = 1
    K: int = 1
    H: int = 16
    V: int = 16
    causal: bool = True
    window: int | None = None
    lengths: tuple[int, ...] | None = None  # of documents packed into each row
    softcap: float | None = None
    has_sinks: bool = False
    q_start: int | tuple[int, ...] = 0
    k_start: int = 0
    is_static: bool = True  # starts are Python ints
    has_d_lse: bool = True
    blocks: Blocks = BLOCKS

    @property
    def num_keys(self) -> int:
        return self.T if self.S is None else self.S

    def arrays(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.normal(size=shape)
        S = self.num_keys
        arrays = {
            "q": draw(self.B, self.N, self.T, self.H),
            "k": draw(self.B, self.K, S, self.H),
            "v": draw(self.B, self.K, S, self.V),
            "d_out": draw(self.B, self.N, self.T, self.V),
            "d_lse": self.has_d_lse * draw(self.B, self.N, self.T),
            "sinks": draw(self.N),
        }
        return {name: array.astype(jnp.bfloat16).astype(float) for name, array in arrays.items()}

    def ids(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Row b begins b tokens into the first document; queries are the last T of the keys."""
        if self.lengths is None:
            return None
        ids = np.repeat(np.arange(len(self.lengths)), self.lengths).astype(np.int32)
        ids_BS = np.stack([np.append(ids[b:], [len(self.lengths)] * b) for b in range(self.B)])
        return ids_BS[:, self.num_keys - self.T :], ids_BS.astype(np.int32)

    def starts(self) -> np.ndarray:
        return np.broadcast_to(np.asarray(self.q_start), (self.B,))

    def sees(self) -> np.ndarray:
        """Pair by pair, as the words have it."""
        sees = np.zeros((self.B, self.T, self.num_keys), bool)
        ids = self.ids()
        for b, t, s in itertools.product(*map(range, sees.shape)):
            distance = self.starts()[b] + t - self.k_start - s
            near = self.window is None or abs(distance) < self.window
            same = ids is None or ids[0][b, t] == ids[1][b, s]
            sees[b, t, s] = near and same and (distance >= 0 or not self.causal)
        return sees

    def options(self) -> dict[str, Any]:
        start = lambda x: x if self.is_static else jnp.asarray(x, jnp.int32)
        return {
            "mask": Mask(causal=self.causal, window=self.window),
            "scale": self.H**-0.5,
            "softcap": self.softcap,
            "segment_ids": self.ids(),
            "q_start": start(self.q_start),
            "k_start": start(self.k_start),
        }


def expected(case: Case) -> dict[str, np.ndarray]:
    """Output, lse and gradients, one query at a time: ds = (d probabilities / d scores)^T dp."""
    x = case.arrays()
    out, lse = np.zeros((case.B, case.N, case.T, case.V)), np.zeros((case.B, case.N, case.T))
    grads = {name: np.zeros_like(x[name]) for name in ("q", "k", "v", "sinks")}
    sees_BTS = case.sees()
    for b, n, t in itertools.product(range(case.B), range(case.N), range(case.T)):
        seen, kv = np.flatnonzero(sees_BTS[b, t]), n * case.K // case.N
        q, k, v = x["q"][b, n, t], x["k"][b, kv, seen], x["v"][b, kv, seen]
        raw = k @ q * case.H**-0.5
        scores, slopes = raw, np.ones_like(raw)
        if case.softcap is not None:
            scores = case.softcap * np.tanh(raw / case.softcap)
            slopes = 1 / np.cosh(raw / case.softcap) ** 2
        if case.has_sinks:
            scores, v = np.append(scores, x["sinks"][n]), np.vstack([v, np.zeros(case.V)])
        if len(scores) == 0:
            lse[b, n, t] = -np.inf
            continue
        lse[b, n, t] = scores.max() + np.log(np.exp(scores - scores.max()).sum())
        p = np.exp(scores - lse[b, n, t])
        out[b, n, t] = p @ v
        dp = v @ x["d_out"][b, n, t]
        ds = p * dp - p * np.sum(p * dp) + p * x["d_lse"][b, n, t]
        grads["sinks"][n] += ds[-1] if case.has_sinks else 0
        d_raw = ds[: len(seen)] * slopes * case.H**-0.5
        grads["q"][b, n, t] = d_raw @ k
        grads["k"][b, kv, seen] += np.outer(d_raw, q)
        grads["v"][b, kv, seen] += np.outer(p[: len(seen)], x["d_out"][b, n, t])
    return {"out": out, "lse": lse, **grads}


def run(case: Case, want: dict[str, np.ndarray], dtype: Any) -> list[Any]:
    x = case.arrays()
    cast = lambda array: jnp.asarray(array, dtype)
    q, k, v, out, d_out = map(cast, (x["q"], x["k"], x["v"], want["out"], x["d_out"]))
    lse, d_lse, sinks = (jnp.asarray(a, jnp.float32) for a in (want["lse"], x["d_lse"], x["sinks"]))
    gradients = functools.partial(
        backward, blocks=case.blocks, interpret=INTERPRET, **case.options()
    )
    grads = quick(lambda *arrays, sinks: gradients(*arrays, sinks_N=sinks))(
        *(q, k, v, out, lse, d_out, d_lse if case.has_d_lse else None),
        sinks=sinks if case.has_sinks else None,
    )
    assert grads[3] is None or case.has_sinks
    return [np.asarray(grad, float) for grad in grads if grad is not None]


def errors(actual: list[Any], want: dict[str, np.ndarray]) -> list[float]:
    """|actual - want| / |want| per gradient, |actual| where `want` is zero.

    To be compared by np.max: Python's max can pass over a NaN.
    """
    names = ("q", "k", "v", "sinks")[: len(actual)]
    found = []
    for got, name in zip(actual, names, strict=True):
        assert got.shape == want[name].shape
        norm = np.linalg.norm(want[name])
        found.append(np.linalg.norm(got - want[name]) / (norm or 1.0))
    return found


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
    "one token": Case(T=1, has_sinks=True),
    "more keys than one call takes": Case(
        T=300, blocks=Blocks(128, 128, 128, chunk_q=256, chunk_kv=128), N=2
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_jacobians(name: str):
    """In f32, where a wrong mask, tail or sum cannot hide behind rounding."""
    case = CASES[name]
    want = expected(case)
    assert np.max(errors(run(case, want, jnp.float32), want)) < F32_BOUND


def test_jacobians_are_those_of_finite_differences():
    """Holds the expectation itself, with every feature in it, to the definition of a gradient."""
    case = Case(T=3, N=2, K=1, H=2, V=2, lengths=(1, 2), softcap=2.0, has_sinks=True)
    x = case.arrays()

    def value(name: str, shift: np.ndarray) -> float:
        moved = {**x, name: x[name] + shift}
        shifted = type("Shifted", (Case,), {"arrays": lambda self: moved})
        want = expected(
            shifted(**{f.name: getattr(case, f.name) for f in dataclasses.fields(Case)})
        )
        return float(np.sum(want["out"] * x["d_out"]) + np.sum(want["lse"] * x["d_lse"]))

    want = expected(case)
    for name in ("q", "k", "v", "sinks"):
        direction = np.random.default_rng(1).normal(size=x[name].shape)
        slope = (value(name, 1e-5 * direction) - value(name, -1e-5 * direction)) / 2e-5
        assert abs(slope - np.sum(want[name] * direction)) < 1e-8 * max(1, abs(slope))


def xla_gradients(case: Case, dtype: Any) -> list[np.ndarray]:
    x = {name: jnp.asarray(a, dtype) for name, a in case.arrays().items()}
    heads_last = lambda a: jnp.swapaxes(a, 1, 2)

    def f(q, k, v):
        options = {"causal": case.causal, "window": case.window, "segment_ids": case.ids()}
        out = reference.attention(
            *map(heads_last, (q, k, v)), scale=case.H**-0.5, softcap=case.softcap, **options
        )
        return heads_last(out)

    _, vjp = jax.vjp(f, x["q"], x["k"], x["v"])
    return [np.asarray(grad, float) for grad in vjp(x["d_out"])]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=str)
def test_error_is_no_larger_than_that_of_xla(dtype: Any):
    """Same computation, same dtype of inputs; both against float64.

    The tenth is for dx, which the kernel rounds to bf16 for the matrix unit; XLA on a CPU
    multiplies it in f32.
    """
    case = Case(T=300, N=2, K=1, H=64, V=32, has_d_lse=False)
    want = expected(case)
    ours = errors(run(case, want, dtype), want)
    theirs = errors(xla_gradients(case, dtype), want)
    slack = 1.1 if dtype == jnp.bfloat16 else 1.0
    assert np.max(ours) <= slack * np.max(theirs)


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
    want = expected(CASES[name])
    assert not np.max(errors(run(CASES[name], want, jnp.float32), want)) < 100 * F32_BOUND


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
    want = expected(case)
    assert np.max(errors(run(case, want, jnp.float32), want)) < 2 * F32_BOUND
