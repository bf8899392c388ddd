# SPDX-License-Identifier: Apache-2.0
"""The forward kernel against float64, on cases chosen to hurt.

Every run is in TPU interpret mode: memory that nobody has written is NaN, reads outside of a
buffer raise, and accesses that race are reported.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H width of q and k
        V width of v
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import reference, tpu_forward, tpu_forward_kernel
from pallas_kernels.attention.masks import Mask
from pallas_kernels.attention.tpu_forward import forward
from pallas_kernels.tuning.attention import ForwardBlocks, forward_blocks
from tests.pallas_kernels.attention import float64
from tests.pallas_kernels.attention.float64 import expected
from tests.reference.compare import quick, relative_error
from tests.reference.covering import covering

INTERPRET = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
)
# f32 rounds by 2^-24 = 6e-8; scores, exponentials and a sum of a thousand terms are some 30
# dependent roundings at these sizes.
F32_BOUND = 2e-6
TINY = ForwardBlocks(queries=128, keys=128, chunk=512, diagonal=128, bounded_diagonal=128)
SMALL = ForwardBlocks(queries=256, keys=128, chunk=1024, diagonal=128, bounded_diagonal=256)
CHUNKS = dataclasses.replace(SMALL, chunk=256)
WIDE = dataclasses.replace(TINY, mxu_sums=True, split_scale=True)
PARTS = dataclasses.replace(SMALL, parts=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(float64.Case):
    blocks: ForwardBlocks = TINY
    paths: str = "online"


def run(
    case: Case, x: dict[str, Any], logit_bound: float | None = None, chip: str = "v6e"
) -> tuple[np.ndarray, np.ndarray]:
    """(out (B, T, N, V), lse (B, N, T))."""
    start = case.q_start if isinstance(case.q_start, int) else jnp.asarray(case.q_start)

    def f(q, k, v, sinks):
        out, lse = forward(
            *(jnp.swapaxes(x, 1, 2) for x in (q, k, v)),
            sinks if case.has_sinks else None,
            mask=Mask(case.causal, case.window),
            scale=case.scale,
            softcap=case.softcap,
            segment_ids=case.ids(),
            q_start=start,
            k_start=case.k_start,
            logit_bound=logit_bound,
            chip=chip,
            interpret=INTERPRET,
            blocks=case.blocks,
            paths=case.paths,
        )
        return jnp.swapaxes(out, 1, 2), lse

    out, lse = quick(f)(*(x[name] for name in ("q", "k", "v", "sinks")))
    return np.asarray(out, np.float64), np.asarray(lse, np.float64)


def rounded(case: Case, dtype: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Arrays in a dtype, and what comes of them in float64."""
    x = {name: jnp.asarray(array, dtype) for name, array in case.arrays().items()}
    return x, expected(case, {name: np.asarray(array, np.float64) for name, array in x.items()})


def check(case: Case, bound: float = F32_BOUND) -> None:
    x, want = rounded(case, jnp.float32)
    out, lse = run(case, x)
    is_seen = np.isfinite(want["lse"])
    assert not np.swapaxes(out, 1, 2)[~is_seen].any() and (lse[~is_seen] == -np.inf).all()
    assert relative_error(out, want["out"]) < bound
    lse_error = np.abs(lse[is_seen] - want["lse"][is_seen])
    assert np.max(lse_error, initial=0.0) < bound * case.spread**2


CASES = {
    "staircase": Case(T=300, N=2, paths="both"),
    "staircase_beyond_the_bound": Case(T=300, spread=20.0, paths="both"),
    "staircase_in_chunks": Case(T=500, blocks=CHUNKS),
    "staircase_of_bounded_scores": Case(T=300, blocks=SMALL, paths="bounded", has_sinks=True),
    "parts_of_a_tile": Case(T=600, blocks=PARTS, paths="both", has_sinks=True),
    "one_position": Case(T=1, paths="bounded"),
    "one_query": Case(T=1, S=200, q_start=199),
    "queries_before_all_keys": Case(B=2, T=129, S=200, q_start=(5, -70), k_start=3),
    "window_in_stairs": Case(T=300, window=100, has_sinks=True),
    "window_of_one": Case(T=129, window=1, paths="bounded"),
    "window_beyond_the_block": Case(T=500, window=300, blocks=CHUNKS),
    "full": Case(T=100, S=200, causal=False, N=4, K=2, paths="bounded"),
    "full_window": Case(T=130, S=300, causal=False, window=70, q_start=100),
    "documents": Case(B=2, T=300, lengths=(100, 1, 99, 100), window=70, spread=20.0),
    "softcap_and_sinks": Case(T=129, softcap=2.0, has_sinks=True, N=2),
    "unequal_widths": Case(T=129, H=192, V=128),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_out_and_lse_agree_with_float64(case):
    # a score of size s is off by s * 2^-24, and so is its exponential
    check(case, F32_BOUND * max(1.0, case.spread**2 / 50))


@pytest.mark.parametrize("paths", ["online", "bounded"])
@pytest.mark.parametrize("blocks", [TINY, WIDE], ids=["vector_sums", "matrix_sums"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_the_error_in_bfloat16_is_no_larger_than_that_of_xla(seed, blocks, paths):
    """Probabilities and the result are rounded to bf16 by 2^-9 each, as XLA rounds them.

    The largest weight of a row is exactly 1 where a maximum is taken; where scores are bounded,
    rows of few keys are divided by the sum of their rounded weights (0.87 and 0.93 of XLA's error,
    at most 0.91 and 0.98, in forty draws by NumPy).
    lse has f32's accuracy, but for sums by the matrix unit, which are of rounded probabilities.
    """
    case = Case(T=256, H=128, V=128, blocks=blocks, paths=paths, seed=seed)
    x, want = rounded(case, jnp.bfloat16)
    out, lse = run(case, x)
    error = relative_error(out, want["out"])
    assert error < 2.0**-8
    by_xla = quick(functools.partial(reference.attention, scale=case.scale))
    assert error <= relative_error(by_xla(x["q"], x["k"], x["v"]), want["out"])
    is_rounded = blocks.mxu_sums and paths == "online"
    assert np.max(np.abs(lse - want["lse"])) < (2.0**-8 if is_rounded else 2e-5)


@pytest.mark.parametrize("logit_bound", [0.0, 1000.0])
def test_the_bound_of_the_caller_chooses_the_path(logit_bound):
    """A bound that is wrong must overflow where the maximum would not: the guard is obeyed."""
    case = Case(T=128, spread=20.0, paths="both")
    x, want = rounded(case, jnp.float32)
    out, _ = run(case, x, logit_bound)
    error = np.nan_to_num(np.abs(out - want["out"]).max(), nan=np.inf)
    assert (error > 1.0) == (logit_bound == 0.0)


@pytest.mark.parametrize(("chip", "is_bounded"), [("v5p", False), ("v6e", True), ("tpu7x", True)])
def test_packed_rows_take_the_maximum_where_it_costs_less(chip, is_bounded):
    """Than the sums of rounded weights; a wrong bound shows which path it was."""
    case = Case(T=128, spread=20.0, paths="both", lengths=(50, 78))
    x, want = rounded(case, jnp.bfloat16)
    out, _ = run(case, x, 0.0, chip)
    error = np.nan_to_num(np.abs(out - want["out"]).max(), nan=np.inf)
    assert (error > 1.0) == is_bounded


MUTATIONS = {
    "no rescaling": ("_fold", lambda f: lambda p, s, *x: (s[0], *f(p, s, *x)[1:])),
    "maximum of one tile": (
        "_fold",
        lambda f: lambda p, s, *x: f(p, (*s[:2], jnp.full_like(s[2], -1e30)), *x),
    ),
    "stairs unmasked": ("_hide", lambda f: lambda scores, *x: scores),
    "stairs one key too few": ("_hide", lambda f: lambda s, n, m: f(s, n - 1, m)),
    "edge of the tile off by one": (
        "tile_mask",
        lambda f: lambda m, q, k, *ids: f(m, q + 1, k, *ids),
    ),
    "causality dropped": (
        "tile_mask",
        lambda f: lambda m, q, k, *ids: f(dataclasses.replace(m, causal=False), q, k, *ids),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutated_kernels_fail(name, monkeypatch):
    attribute, change = MUTATIONS[name]
    monkeypatch.setattr(
        tpu_forward_kernel, attribute, change(getattr(tpu_forward_kernel, attribute))
    )
    case = Case(T=200, spread=3.0)
    if attribute == "tile_mask":
        case = dataclasses.replace(case, q_start=(1,))
    with pytest.raises(AssertionError):
        check(case)


def test_a_tail_of_keys_that_is_seen_fails(monkeypatch):
    plan = tpu_forward.Plan
    seen = lambda **fields: plan(**fields | {"num_keys": -(-fields["num_keys"] // 128) * 128})
    monkeypatch.setattr(tpu_forward, "Plan", seen)
    with pytest.raises(AssertionError):
        check(Case(T=100, S=200, causal=False))


def test_blocks_fit_the_arrays_and_the_staircase():
    for chip, T, window, itemsize in itertools.product(
        ("v5e", "v5p", "v6e", "tpu7x"), (1, 127, 1000, 4096, 32768), (None, 100, 5000), (2, 4)
    ):
        for H, is_plain in itertools.product((64, 128, 192, 256), (True, False)):
            b = forward_blocks(chip, T, T, H, H, itemsize, is_plain, window)
            assert b.chunk % b.keys == 0 and b.queries % 128 == 0 and b.keys % 128 == 0
            assert b.queries % (128 * b.parts) == 0
            assert b.queries % b.diagonal == 0 and b.queries % b.bounded_diagonal == 0
            assert not is_plain or (b.queries % b.keys == 0 and b.chunk % b.queries == 0)


def _brief(value):
    return {SMALL: "small", CHUNKS: "chunks", WIDE: "wide"}.get(value, str(value))


FEATURES = {
    "blocks": [SMALL, CHUNKS, WIDE],
    "T": [1, 127, 129, 1000],
    "window": [None, 5, 400],
    "paths": ["online", "bounded"],
    "causal": [True, False],
    "has_documents": [False, True],
    "softcap": [None, 3.0],
}
TRIPLES = covering(3, FEATURES)  # their product, 576 cases, takes more than an hour


def test_every_three_features_meet_in_every_way():
    for names in itertools.combinations(FEATURES, 3):
        met = {tuple(case[name] for name in names) for case in TRIPLES}
        assert met == set(itertools.product(*(FEATURES[name] for name in names)))
    assert len(TRIPLES) < 64


@pytest.mark.slow
@pytest.mark.parametrize("case", TRIPLES, ids=lambda case: "-".join(map(_brief, case.values())))
def test_features_together(case):
    T, H = case["T"], 128 if case["blocks"] == WIDE else 64
    features = {
        name: case[name] for name in ("blocks", "T", "window", "paths", "causal", "softcap")
    }
    lengths = (T // 3, 1, T - T // 3 - 1) if case["has_documents"] and T > 2 else None
    check(Case(**features, N=2, H=H, V=H, lengths=lengths, has_sinks=T == 129))
