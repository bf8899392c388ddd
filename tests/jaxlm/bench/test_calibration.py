# SPDX-License-Identifier: Apache-2.0
"""Verdicts err as rarely as they say, and the bench would notice if they did not."""

import math

import numpy as np
import pytest

from jaxlm.bench import calibration
from jaxlm.bench.calibration import MOST, Row, bench_real, bench_simulated, table
from jaxlm.research.bank import Bank
from jaxlm.research.stats.verdict import Rules


@pytest.mark.parametrize("count", [200, pytest.param(4000, marks=pytest.mark.slow)])
def test_verdicts_err_in_at_most_one_of_twenty_and_intervals_cover(count: int) -> None:
    rows, doubt = bench_simulated(count), 2 * math.sqrt(0.05 * 0.95 / count)
    assert [row.kind for row in rows if not row.is_fit] == []
    for row in rows:
        assert row.covered / row.count >= 0.94 - doubt, row
        if "peeking" not in row.kind:  # those hold at every look, and so are wider
            assert row.covered / row.count <= 0.97 + doubt, row


def test_a_look_after_every_seed_at_intervals_for_one_look_would_show() -> None:
    rng, draw = np.random.default_rng(0), calibration._draw(1, MOST)
    row = calibration._row("peeking at a t interval", draw, Rules(), True, 1000, rng)
    assert row.rate > 0.1 and "EXCEEDED" in "\n".join(table([row]))


def test_real_runs_are_compared_in_disjoint_groups() -> None:
    losses = np.random.default_rng(0).normal(2.0, 0.01, (2, 602, 2))
    losses[1, 5] = np.nan  # a run that did not complete
    bank = Bank(("baseline", "x"), tuple(range(602)), (0.5, 1.0), (losses,))
    fixed, peeking = bench_real(bank)
    assert fixed.count == peeking.count == 602 // 6 + 601 // 6
    assert fixed.is_fit and peeking.is_fit
    assert bench_real(bank, seeds=4)[0].count == 602 // 8 + 601 // 8


def test_the_allowance_is_two_standard_errors() -> None:
    assert Row("", 100, 9, 90).is_fit and not Row("", 100, 10, 90).is_fit
