# SPDX-License-Identifier: Apache-2.0
"""Counts by formula equal counts by enumeration, and follow the weights at every step."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.config import CorpusConfig, DataConfig, TokenizerConfig
from jaxlm.data.mixture import Mixture, make_mixture

weights_of_corpora = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)


def mixture(batch_size: int, *schedule: tuple[int, tuple[float, ...]]) -> Mixture:
    weights = schedule[0][1]
    corpora = [CorpusConfig(name=f"c{i}", source="x", weight=w) for i, w in enumerate(weights)]
    return make_mixture(
        DataConfig(
            corpora=tuple(corpora),
            tokenizer=TokenizerConfig(vocab_size=300),
            seq_len=8,
            batch_size=batch_size,
            weight_schedule=schedule if len(schedule) > 1 else (),
        )
    )


def van_der_corput(s: int) -> Fraction:
    return Fraction(int(f"{s:064b}"[::-1], 2), 2**64)


@given(weights=weights_of_corpora, batch_size=st.integers(1, 40))
def test_counts_equal_the_enumeration_of_the_rows(weights: list[int], batch_size: int) -> None:
    mix = mixture(batch_size, (0, tuple(map(float, weights))))
    shares = [
        Fraction(sum(weights[: i + 1]) * batch_size, sum(weights)) for i in range(len(weights))
    ]
    for step in range(40):
        points = [b + van_der_corput(step) for b in range(batch_size)]
        below = [sum(point < share for point in points) for share in shares]
        want = tuple(b - a for a, b in zip([0, *below], below, strict=False))
        got = mix.counts(step)
        if all((share * 2**40).denominator == 1 for share in shares):
            assert got == want
        assert sum(got) == batch_size
        assert all(n == 0 for n, w in zip(got, weights, strict=True) if w == 0)


@given(weights=weights_of_corpora, batch_size=st.integers(1, 40))
def test_rows_used_are_the_sum_of_the_counts(weights: list[int], batch_size: int) -> None:
    mix = mixture(batch_size, (0, tuple(map(float, weights))))
    total = [0] * len(weights)
    for step in range(60):
        assert mix.used(step) == tuple(total)
        counts = mix.counts(step)
        assert min(counts) >= 0
        total = [a + b for a, b in zip(total, counts, strict=True)]


@pytest.mark.parametrize(
    "weights", [(1.0,), (0.7, 0.3), (0.001, 0.999), (5.0, 0.0, 1.0), (1, 1, 1)]
)
def test_rows_used_follow_the_weights_to_within_a_few(weights: tuple[float, ...]) -> None:
    batch_size = 32
    mix = mixture(batch_size, (0, weights))
    for step in [*range(0, 3000, 7), 10**6 + 12345, 10**9 + 7]:
        bound = 2 * (math.log2(step + 1) / 3 + 1)  # the ends of a share: two discrepancies
        for used, weight in zip(mix.used(step), weights, strict=True):
            assert abs(used - step * batch_size * weight / sum(weights)) <= bound


def test_schedule_changes_at_its_steps_and_only_there() -> None:
    mix = mixture(10, (0, (1.0, 0.0, 1.0)), (5, (0.0, 1.0, 0.0)), (17, (0.5, 0.3, 0.2)))
    assert [mix.counts(s) for s in (0, 4)] == [(5, 0, 5)] * 2
    assert [mix.counts(s) for s in (5, 16)] == [(0, 10, 0)] * 2
    assert [mix.counts(s) for s in (17, 40)] == [(5, 3, 2)] * 2
    assert mix.used(0) == (0, 0, 0)
    assert mix.used(5) == (25, 0, 25)
    assert mix.used(17) == (25, 120, 25)
    assert mix.used(27) == (75, 150, 45)
    assert mix.shares() == [(5.0, 0.0, 5.0), (0.0, 10.0, 0.0), (5.0, 3.0, 2.0)]


def test_counts_of_a_batch_are_its_share_rounded_down_or_up() -> None:
    mix = mixture(7, (0, (0.35, 0.05, 0.6)))
    for step in range(500):
        for count, share in zip(mix.counts(step), (7 * 0.35, 7 * 0.05, 7 * 0.6), strict=True):
            assert math.floor(share) <= count <= math.ceil(share)
