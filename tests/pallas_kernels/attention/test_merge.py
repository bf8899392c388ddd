# SPDX-License-Identifier: Apache-2.0
"""Attention over parts of the keys, merged, is attention over all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.api import attention
from pallas_kernels.attention.merge import merge
from tests.reference.compare import quick, relative_error

CUTS = [(0, 3), (3, 4), (4, 11)]  # of the keys


def draw() -> list[jax.Array]:
    rng = np.random.default_rng(0)
    shapes = [(2, 6, 4, 8), (2, 11, 2, 8), (2, 11, 2, 5), (4,)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def whole(q, k, v, sinks):
    return attention(q, k, v, q_offset=-1, sinks_N=sinks, return_lse=True)


def in_parts(q, k, v, sinks):
    """Queries stand at -1 .. 4: the first sees nothing, and no query sees all parts."""
    parts = []
    for low, high in CUTS:
        share = sinks if low == 0 else jnp.full_like(sinks, -jnp.inf)
        arrays = q, k[:, low:high], v[:, low:high]
        parts.append(attention(*arrays, q_offset=-1, k_offset=low, sinks_N=share, return_lse=True))
    return merge(*zip(*parts, strict=True))


def test_values_and_gradients_are_those_of_all_keys_together():
    """Of out and of lse; queries that see nothing must not turn gradients into NaN."""

    def loss(f, arrays):
        out, lse = f(*arrays)
        seen = jnp.where(jnp.isfinite(lse), lse, 0.0)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(seen))

    arrays = draw()
    for got, want in zip(quick(in_parts)(*arrays), quick(whole)(*arrays), strict=True):
        assert relative_error(got, want) < 1e-6
    got, want = (quick(jax.grad(functools.partial(loss, f)))(arrays) for f in (in_parts, whole))
    for g, w in zip(got, want, strict=True):
        assert relative_error(g, w) < 3e-6


def test_queries_that_no_part_shows_a_key_give_zeros_and_finite_gradients():
    out, lse = jnp.ones((1, 1, 1, 3)), jnp.full((1, 1, 1), -jnp.inf)
    merged, vjp = jax.vjp(lambda o, x: merge([o, o], [x, x]), out, lse)
    assert not merged[0].any() and merged[1] == -jnp.inf
    assert all(np.isfinite(d).all() for d in vjp((jnp.ones_like(out), jnp.ones_like(lse))))


def test_scores_far_apart_do_not_overflow():
    outs = [jnp.full((1, 1, 1, 1), x) for x in (1.0, 2.0)]
    out, lse = merge(outs, [jnp.full((1, 1, 1), x) for x in (500.0, -500.0)])
    assert out.item() == 1.0 and lse.item() == 500.0


def test_parts_without_their_lse_are_refused():
    with pytest.raises(ValueError, match="1 outs and 0 lses"):
        merge([jnp.ones((1, 1, 1, 1))], [])
