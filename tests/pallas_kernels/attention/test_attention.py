# SPDX-License-Identifier: Apache-2.0
"""Every implementation of attention against loops in float64, on cases chosen to hurt.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H head width
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import autograd
import autograd.numpy as anp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.api import attention
from tests.reference import attention as loops
from tests.reference.compare import in_float64, quick, relative_error

# f32 rounds by 2^-24 = 6e-8; a sum over S keys of products over H, an exponential and their
# gradients are some 30 dependent roundings at these sizes.
F32_BOUND = 2e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    B: int = 2
    T: int = 13
    S: int = 13
    N: int = 4
    K: int = 2
    H: int = 6
    value_width: int = 6
    scale: float | None = None
    causal: bool = True
    window: int | None = None
    lengths: tuple[int, ...] | None = None  # of documents packed into each row
    softcap: float | None = None
    has_sinks: bool = False
    q_offset: int | tuple[int, ...] = 0
    spread: float = 1.0  # of queries and keys

    def arrays(self) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
        q = self.spread * draw(self.B, self.T, self.N, self.H)
        k = self.spread * draw(self.B, self.S, self.K, self.H)
        sinks = (draw(self.N),) if self.has_sinks else ()
        return q, k, draw(self.B, self.S, self.K, self.value_width), *sinks

    def segment_ids(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Queries are the last T of the keys; row b's documents are shifted by b."""
        if self.lengths is None:
            return None
        ids_S = np.repeat(np.arange(len(self.lengths)), self.lengths)
        ids_BS = np.stack([np.roll(ids_S, b) for b in range(self.B)])
        return ids_BS[:, self.S - self.T :], ids_BS

    def options(self) -> dict[str, Any]:
        offset = jnp.asarray(self.q_offset) if isinstance(self.q_offset, tuple) else self.q_offset
        return {
            "scale": self.scale,
            "causal": self.causal,
            "window": self.window,
            "segment_ids": self.segment_ids(),
            "softcap": self.softcap,
            "q_offset": offset,
        }

    def sees(self, b: int, t: int, s: int) -> bool:
        offset = self.q_offset[b] if isinstance(self.q_offset, tuple) else self.q_offset
        distance = offset + t - s
        if self.causal and distance < 0:
            return False
        if self.window is not None and abs(distance) >= self.window:
            return False
        ids = self.segment_ids()
        return ids is None or bool(ids[0][b, t] == ids[1][b, s])


SELF_ATTENTION = {
    "plain": Case(),
    "one_position": Case(T=1, S=1, has_sinks=True),
    "one_kv_head": Case(K=1, N=3),
    "as_many_kv_heads": Case(K=3, N=3, H=2, value_width=5),
    "six_heads_in_groups_of_two": Case(N=6, K=3, scale=0.9),
    "window_of_one": Case(window=1, has_sinks=True),
    "window": Case(window=4, has_sinks=True),
    "window_beyond_the_row": Case(window=99),
    "softcap": Case(softcap=0.7, spread=2.0),
    "sinks": Case(has_sinks=True, softcap=2.0),
    "segments": Case(lengths=(5, 1, 7), window=3, has_sinks=True),
    "scores_near_a_thousand": Case(spread=20.0, has_sinks=True),
}
BLOCKS = {
    "several_blocks": Case(B=1, T=131, S=131, lengths=(60, 1, 70), K=1, N=2),
    "several_blocks_window": Case(B=1, T=131, S=131, window=65, K=1, N=2, has_sinks=True),
}
OTHERS = {
    "not_causal": Case(causal=False, T=5, S=9),
    "not_causal_window": Case(causal=False, window=2, has_sinks=True),
    "continued_cache": Case(T=3, S=17, q_offset=11, window=6),
    "rows_continue_apart": Case(T=3, S=17, q_offset=(0, 14), softcap=1.0),
    "queries_are_the_last_keys": Case(T=4, S=13, q_offset=9, lengths=(2, 8, 3)),
}
# Queries before all keys, and queries whose window lies beyond the last key.
BLIND = {
    "blind": Case(T=5, S=7, q_offset=-3),
    "blind_with_sinks": Case(T=5, S=7, q_offset=-3, has_sinks=True),
    "blind_window": Case(T=9, S=4, causal=True, window=2),
}


def attend(case: Case, impl: str) -> Callable[..., jax.Array]:
    """arrays of the case -> output."""

    def f(q, k, v, sinks_N=None):
        return attention(q, k, v, sinks_N=sinks_N, impl=impl, **case.options())

    return f


def run(case: Case, impl: str, arrays: tuple[Any, ...]) -> np.ndarray:
    return np.asarray(quick(attend(case, impl))(*arrays))


def expected_run(case: Case, arrays: tuple[Any, ...]) -> Any:
    q, k, v, *sinks = arrays
    scale = case.H**-0.5 if case.scale is None else case.scale
    sinks_N = sinks[0] if sinks else None
    return loops.attention(q, k, v, case.sees, scale=scale, softcap=case.softcap, sinks_N=sinks_N)


def errors_against_loops(case: Case, impl: str) -> list[float]:
    """Relative errors of the output and of the gradients for q, k, v and sinks."""
    arrays = case.arrays()
    out_shape = (case.B, case.T, case.N, case.value_width)
    cotangent = np.random.default_rng(1).normal(size=out_shape).astype(np.float32)

    def value_and_grads(arrays, cotangent):
        out, vjp = jax.vjp(attend(case, impl), *arrays)
        return out, *vjp(cotangent)

    actual = quick(value_and_grads)(arrays, cotangent)
    wide = in_float64(arrays)
    loss = lambda arrays: anp.sum(expected_run(case, arrays) * cotangent)
    expected = expected_run(case, wide), *autograd.grad(loss)(wide)
    return [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("case", SELF_ATTENTION.values(), ids=SELF_ATTENTION)
def test_values_and_gradients_agree_with_loops(case, impl):
    # a score of size s is off by s * 2^-24, and so is its exponential
    bound = F32_BOUND * case.spread**2
    assert max(errors_against_loops(case, impl)) < bound


@pytest.mark.parametrize("case", BLOCKS.values(), ids=BLOCKS)
def test_rows_of_several_blocks_agree_with_loops(case):
    assert max(errors_against_loops(case, "xla")) < F32_BOUND


@pytest.mark.parametrize("case", (OTHERS | BLIND).values(), ids=OTHERS | BLIND)
def test_values_and_gradients_agree_with_loops_where_nothing_can_be_skipped(case):
    """A query that sees no key must give exact zeros, and gradients that are not NaN."""
    assert max(errors_against_loops(case, "auto")) < F32_BOUND


@pytest.mark.parametrize("case", BLIND.values(), ids=BLIND)
def test_queries_that_see_nothing_give_zeros(case):
    out = run(case, "reference", case.arrays())
    blind = [t for t in range(case.T) if not any(case.sees(0, t, s) for s in range(case.S))]
    assert blind
    assert not out[:, blind].any()


@pytest.mark.parametrize("window", [None, 1, 63, 64, 65, 130])
def test_every_query_looks_at_exactly_its_window(window):
    """With the identity as values, the output is the weights.  130 = blocks of 64, 64 and 2."""
    case = Case(B=1, T=130, S=130, K=1, N=1, window=window)
    q, k, _ = case.arrays()
    weights_TS = run(case, "xla", (q, k, np.eye(130, dtype=np.float32)[None, :, None]))[0, :, 0]
    distance = np.arange(130)[:, None] - np.arange(130)[None, :]
    expected = (distance >= 0) & (distance < (window or 130))
    np.testing.assert_array_equal(weights_TS > 0, expected)
    np.testing.assert_allclose(weights_TS.sum(-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("T", [64, 65, 257])
def test_blocks_agree_with_the_definition_at_every_remainder(T):
    case = Case(B=1, T=T, S=T, K=1, N=2, window=100, lengths=(T - 9, 9), softcap=3.0)
    arrays = case.arrays()
    assert relative_error(run(case, "xla", arrays), run(case, "reference", arrays)) < 5e-7


def test_a_sink_is_one_more_key_whose_value_is_zero():
    """The sinks' logits as scores of a key that every query sees."""
    case = Case(B=1, N=3, K=3, scale=1.0)
    q, k, v = case.arrays()
    sinks = np.array([-1.0, 0.5, 3.0], np.float32)
    out = attention(q, k, v, scale=1.0, sinks_N=sinks, impl="reference")
    # one more dimension carries the sink: 1 in every query, the logit in the new key, 0 elsewhere
    wide = lambda x, last: np.concatenate([x, np.broadcast_to(last, (*x.shape[:3], 1))], -1)
    new_key = wide(np.zeros((1, 1, 3, 6), np.float32), sinks[None, None, :, None])
    keys = np.concatenate([new_key, wide(k, np.float32(0))], 1)
    values = np.concatenate([np.zeros((1, 1, 3, 6), np.float32), v], 1)
    ones = wide(q, np.float32(1))
    expected = attention(ones, keys, values, scale=1.0, q_offset=1, impl="reference")
    assert relative_error(out, expected) < F32_BOUND


@pytest.mark.parametrize(("sink", "share"), [(-200.0, 1.0), (200.0, 0.0)])
def test_extreme_sinks_take_nothing_or_everything(sink, share):
    case = Case()
    sinks = np.full(case.N, sink, np.float32)
    without = run(case, "reference", case.arrays())
    with_sinks = attention(*case.arrays(), sinks_N=sinks, impl="reference")
    np.testing.assert_allclose(with_sinks, share * without, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_bfloat16_inputs_are_summed_in_float32(impl):
    """A mean of 1000 values near 1: a bf16 sum would stop growing at 256."""
    S = 1000
    rng = np.random.default_rng(0)
    draw = lambda mean: jnp.asarray(rng.normal(mean, 0.1, (1, S, 1, 8)), jnp.bfloat16)
    q, k, v = draw(0.0), draw(0.0), draw(1.0)
    out = quick(lambda *x: attention(*x, impl=impl))(q, k, v)
    assert out.dtype == jnp.bfloat16
    last = loops.attention(*in_float64((q[:, -1:], k, v)), lambda *_: True, scale=8**-0.5)
    # probabilities and the result are rounded to bf16, by 2^-9 each
    np.testing.assert_allclose(np.asarray(out, np.float64)[:, -1:], last, rtol=2.0**-8)


def test_blocks_leave_out_what_the_mask_hides():
    def flops(impl: str, window: int | None) -> float:
        x = jnp.zeros((1, 1024, 2, 32))
        run = lambda x: attention(x, x, x, window=window, impl=impl)
        return jax.jit(run).lower(x).cost_analysis()["flops"]

    # four blocks of queries need 1/4, 2/4, 3/4 and all of the keys: 5/8 of the scores
    assert flops("xla", None) < 0.65 * flops("reference", None)
    # a block of 256 queries and a window of 64 keys before it: 4 * 256 * 319 of 1024^2 scores
    assert flops("xla", 64) < 0.35 * flops("reference", 64)


def test_a_cache_or_no_causality_is_refused_by_blocks_and_left_to_the_definition_by_auto():
    case = OTHERS["continued_cache"]
    with pytest.raises(ValueError, match="xla"):
        run(case, "xla", case.arrays())
    auto, definition = (run(case, impl, case.arrays()) for impl in ("auto", "reference"))
    np.testing.assert_array_equal(auto, definition)


def test_mistakes_are_named():
    q, k, v = Case(N=4, K=3).arrays()
    with pytest.raises(ValueError, match=r"4 query heads .* 3 kv heads"):
        attention(q, k, v)
    with pytest.raises(ValueError, match="flash"):
        attention(q[:, :, :3], k, v, impl="flash")
