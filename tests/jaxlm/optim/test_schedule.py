# SPDX-License-Identifier: Apache-2.0
"""The schedules against a table made update by update in exact arithmetic."""

import math
from fractions import Fraction

import jax
import numpy as np
import pytest

from jaxlm.optim.config import OptimConfig
from jaxlm.optim.hparams import hparams
from jaxlm.optim.schedule import learning_rate_scale

KINDS = ["constant", "linear", "cosine", "wsd"]
N = 12


def table(
    kind: str, warmup: int, num_steps: int, final: Fraction, decay_frac: Fraction
) -> list[float]:
    """Walks the corners: (0, 0) -> (warmup, 1) -> (start, 1) -> (num_steps, final)."""
    shares = []
    start = warmup
    if kind == "wsd":
        start = max(Fraction(warmup), num_steps - decay_frac * num_steps)
    for update in range(1, num_steps + 1):
        if update <= warmup:
            shares.append(float(Fraction(update, warmup)))
        elif kind == "constant" or update <= start:
            shares.append(1.0)
        else:
            done = (update - Fraction(start)) / (num_steps - Fraction(start))
            left = (
                (1 + math.cos(math.pi * float(done))) / 2 if kind == "cosine" else float(1 - done)
            )
            shares.append(float(final) + (1 - float(final)) * left)
    return shares


def computed(kind: str, num_steps: int, **fields) -> np.ndarray:
    h = hparams(OptimConfig(peak_lr=1.0, schedule=kind, **fields), num_steps)
    steps = np.arange(num_steps, dtype=np.int32)
    return np.asarray(jax.vmap(lambda step: learning_rate_scale(kind, step, h))(steps))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 1, 3, N - 1, N])
@pytest.mark.parametrize("final", [Fraction(0), Fraction(1, 8), Fraction(1)])
@pytest.mark.parametrize("decay_frac", [Fraction(1, 16), Fraction(5, 16), Fraction(1)])
def test_every_update_has_the_share_of_the_table(kind, warmup, final, decay_frac):
    actual = computed(
        kind, N, warmup_steps=warmup, final_lr_frac=float(final), decay_frac=float(decay_frac)
    )
    # a few roundings of numbers up to 1, and of a cosine
    np.testing.assert_allclose(actual, table(kind, warmup, N, final, decay_frac), atol=4e-7)


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, N - 1])
def test_the_last_update_has_exactly_the_final_share(kind, warmup):
    assert computed(kind, N, warmup_steps=warmup, final_lr_frac=0.125)[-1] == 0.125
    assert computed(kind, N, warmup_steps=warmup)[-1] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_no_share_leaves_the_unit_interval_nor_is_the_first_zero(kind):
    for num_steps in (1, 2, 1000):
        for warmup in (0, 1, num_steps // 2, num_steps):
            shares = computed(kind, num_steps, warmup_steps=warmup, final_lr_frac=0.01)
            assert shares.min() > 0
            assert shares.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_beyond_the_last_update_the_share_stays(kind):
    h = hparams(OptimConfig(peak_lr=1.0, final_lr_frac=0.25), N)
    last = learning_rate_scale(kind, N - 1, h)
    assert learning_rate_scale(kind, 3 * N, h) == last
    assert last.dtype == np.float32
