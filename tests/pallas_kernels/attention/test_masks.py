# SPDX-License-Identifier: Apache-2.0
"""The tables of tiles against every pair of a query and a key, one by one.

Legend: B batch  T query positions  S key positions
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.masks import Mask, block_ranges, tile_mask

MASKS = [Mask(c, w) for c, w in itertools.product([True, False], [None, 1, 3, 9, 30])]


def every_pair(mask: Mask, ids, starts, T: int, S: int) -> np.ndarray:
    """(B, T, S) by the definition."""
    q_BT1 = np.reshape(starts[0], (-1, 1, 1)) + np.arange(T)[None, :, None]
    k_B1S = np.reshape(starts[1], (-1, 1, 1)) + np.arange(S)[None, None, :]
    distance = q_BT1 - k_B1S
    visible = distance >= 0 if mask.causal else np.ones_like(distance, bool)
    if mask.window is not None:
        visible = visible & (np.abs(distance) < mask.window)
    return visible if ids is None else visible & (ids[0][:, :, None] == ids[1][:, None, :])


def draw_ids(rng: np.random.Generator, kind: str, B: int, T: int, S: int):
    if kind == "none":
        return None
    q_ids, k_ids = (rng.integers(0, 5, (B, n)).astype(np.int32) for n in (T, S))
    return (q_ids, k_ids) if kind == "any" else (np.sort(q_ids), np.sort(k_ids))


def tiles(pairs_BTS: np.ndarray, block_q: int, block_k: int):
    """(i, j, pairs (B, q, k)) of every tile."""
    T, S = pairs_BTS.shape[1:]
    for q, k in itertools.product(range(0, T, block_q), range(0, S, block_k)):
        yield q // block_q, k // block_k, pairs_BTS[:, q : q + block_q, k : k + block_k]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("kind", ["none", "packed", "any"])
def test_all_needed_tiles_are_visited_and_full_ones_hide_nothing(mask, kind):
    rng = np.random.default_rng(0)
    B, T, S, block_q, block_k = 12, 23, 31, 5, 7  # rows of other starts and ids
    starts = rng.integers(-10, 20, (2, B)).astype(np.int32)
    ids = draw_ids(rng, kind, B, T, S)
    args = (mask, *(ids or (None, None)), *starts, T, S, block_q, block_k)
    by_query, by_key = (np.asarray(block_ranges(*args, by_key=by_key)) for by_key in (False, True))
    for i, j, pairs in tiles(every_pair(mask, ids, starts, T, S), block_q, block_k):
        is_ragged_k, is_ragged_q = (j + 1) * block_k > S, (i + 1) * block_q > T
        for b in range(B):
            for (first, full_first, full_last, last), at, is_ragged in (
                (by_query[b, i], j, is_ragged_k),
                (by_key[b, j], i, is_ragged_k or is_ragged_q),
            ):
                assert first <= full_first <= full_last <= last
                assert first <= at < last or not pairs[b].any()
                assert not full_first <= at < full_last or (pairs[b].all() and not is_ragged)


def test_ranges_are_tight_for_documents_one_after_the_other():
    """Documents of 5, 1, 6 and 4 and padding whose id returns to 0; blocks of 4 x 4."""
    ids = jnp.asarray(np.repeat([[1, 2, 3, 4, 0]], [5, 1, 6, 4, 4], axis=1), jnp.int32)
    ranges = block_ranges(Mask(causal=True), ids, ids, 0, 0, 20, 20, 4, 4)
    assert ranges[0].tolist() == [
        [0, 1, 1, 1],
        [0, 2, 2, 2],
        [1, 3, 3, 3],
        [3, 4, 4, 4],
        [4, 5, 5, 5],
    ]
    full = block_ranges(Mask(causal=False), ids, ids, 0, 0, 20, 20, 4, 4)
    assert full[0, 4].tolist() == [4, 4, 5, 5]


def test_causal_self_attention_visits_the_triangle():
    ranges = block_ranges(Mask(causal=True), None, None, 0, 0, 12, 12, 4, 2)
    assert ranges.tolist() == [[[0, 2, 2, 2], [0, 0, 2, 4], [0, 0, 4, 6]]]
    mirrored = block_ranges(Mask(causal=True), None, None, 0, 0, 12, 12, 2, 4, by_key=True)
    assert mirrored.tolist() == [[[0, 2, 6, 6], [2, 4, 6, 6], [4, 6, 6, 6]]]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_the_mask_of_a_tile_is_the_definition(mask):
    ids = draw_ids(np.random.default_rng(1), "any", 1, 7, 9)
    q_pos, k_pos = np.arange(7)[:, None] + 3, np.arange(9)[None, :]
    visible = tile_mask(mask, q_pos, k_pos, ids[0][0][:, None], ids[1][0][None, :])
    expected = every_pair(mask, ids, ([3], [0]), 7, 9)[0]
    np.testing.assert_array_equal(visible, expected)
