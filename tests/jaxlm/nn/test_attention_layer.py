# SPDX-License-Identifier: Apache-2.0
"""Who sees whom, read off the gradient: a position depends on exactly the ones that it sees.

Legend: B batch  T positions  S key positions  D model width  N query heads  K kv heads
        H head width
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.attention import Attention, Where
from jaxlm.nn.rope import rope_frequencies, rope_tables
from tests.reference.compare import quick, relative_error

D, N, K, H = 6, 4, 2, 4
SEGMENTS = [[1, 1, 1, 2, 2, 2, 2, 0]]


def layer(window=None, has_sinks=False, impl="auto") -> Attention:
    shape = {"num_heads": N, "kv_heads": K, "head_dim": H, "num_layers": 1}
    return Attention(
        **shape, window=window, softcap=None, has_sinks=has_sinks, qk_norm_eps=None, impl=impl
    )


def random_params(has_sinks=False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"wq": (D, N, H), "wk": (D, K, H), "wv": (D, K, H), "wo": (N, H, D)}
    shapes |= {"sinks": (N,)} if has_sinks else {}
    return {k: rng.normal(0, 0.5, shape).astype(np.float32) for k, shape in shapes.items()}


def inputs(T: int, segment_ids=None) -> tuple[np.ndarray, Where]:
    x_BTD = np.random.default_rng(1).normal(size=(1, T, D)).astype(np.float32)
    tables = rope_tables(jnp.arange(T)[None], *rope_frequencies(H, 50.0))
    return x_BTD, Where(tables, None if segment_ids is None else jnp.asarray(segment_ids), None)


def dependence(layer: Attention, x_BTD: np.ndarray, where: Where) -> np.ndarray:
    """(T, T) bool: whether output t changes with input s."""

    def f(x_TD):
        return layer.apply({"params": random_params()}, x_TD[None], where, None)[0][0]

    jacobian_TDSD = quick(jax.jacrev(f))(x_BTD[0])
    return np.asarray(jnp.abs(jacobian_TDSD).sum((1, 3)) > 0)


def picture(rows: str) -> np.ndarray:
    return np.array([[mark == "x" for mark in row] for row in rows.split()])


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize(
    ("window", "segment_ids", "expected"),
    [
        (None, None, "x....... xx...... xxx..... xxxx.... xxxxx... xxxxxx.. xxxxxxx. xxxxxxxx"),
        (3, None, "x....... xx...... xxx..... .xxx.... ..xxx... ...xxx.. ....xxx. .....xxx"),
        (1, None, "x....... .x...... ..x..... ...x.... ....x... .....x.. ......x. .......x"),
        (None, SEGMENTS, "x....... xx...... xxx..... ...x.... ...xx... ...xxx.. ...xxxx. .......x"),
        (2, SEGMENTS, "x....... xx...... .xx..... ...x.... ...xx... ....xx.. .....xx. .......x"),
    ],
    ids=["causal", "window_3", "window_1", "segments", "window_2_segments"],
)
def test_a_position_depends_on_exactly_the_positions_that_it_sees(
    impl, window, segment_ids, expected
):
    x, where = inputs(8, segment_ids)
    np.testing.assert_array_equal(dependence(layer(window, impl=impl), x, where), picture(expected))


def test_query_heads_of_a_group_are_interchangeable():
    """Swapping heads 0 and 1, both of kv head 0, changes nothing; 0 and 2 of two groups does."""
    x, where = inputs(5)
    params = random_params(has_sinks=True)

    def run(p):
        return np.asarray(layer(has_sinks=True).apply({"params": p}, x, where, None)[0])

    def reordered(order: list[int]) -> dict[str, np.ndarray]:
        q = {"wq": params["wq"][:, order], "wo": params["wo"][order]}
        return params | q | {"sinks": params["sinks"][order]}

    assert relative_error(run(reordered([1, 0, 3, 2])), run(params)) < 1e-6
    assert relative_error(run(reordered([2, 1, 0, 3])), run(params)) > 0.1


def test_groups_move_with_their_kv_head():
    x, where = inputs(5)
    params = random_params()
    heads, kv = [2, 3, 0, 1], [1, 0]
    moved = {
        "wq": params["wq"][:, heads],
        "wk": params["wk"][:, kv],
        "wv": params["wv"][:, kv],
        "wo": params["wo"][heads],
    }

    def run(p):
        return np.asarray(layer().apply({"params": p}, x, where, None)[0])

    assert relative_error(run(moved), run(params)) < 1e-6
    assert relative_error(run(params | {"wk": moved["wk"]}), run(params)) > 0.1
