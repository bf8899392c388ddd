# SPDX-License-Identifier: Apache-2.0
"""The kernels as jax differentiates them, against the definition; and who may use them.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H head width
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import reference, tpu
from pallas_kernels.attention.api import attention
from pallas_kernels.attention.masks import Mask
from tests.reference.compare import relative_error

INTERPRET = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
)
B, T, S, N, K, H = 2, 40, 50, 4, 2, 16


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def test_gradients_honour_out_and_lse_under_every_feature_at_once():
    """Documents, a window, a cap, sinks, grouped heads and offsets of each row."""
    arrays = draw(B, T, N, H), draw(B, S, K, H), draw(B, S, K, H), draw(N)
    ids = np.sort(np.random.default_rng(0).integers(0, 3, (B, S))).astype(np.int32)
    ids = jnp.asarray(ids[:, S - T :]), jnp.asarray(ids)
    q_start, k_start = jnp.asarray([12, 9], jnp.int32), jnp.asarray(2, jnp.int32)
    d_out, d_lse = draw(B, T, N, H + 1)[..., :H], draw(B, N, T)

    def kernel(q, k, v, sinks):
        options = tpu.Options(Mask(True, 30), 0.3, 2.0, "v5p", INTERPRET)
        return tpu.attention(q, k, v, sinks, ids, q_start, k_start, None, options)

    def definition(q, k, v, sinks):
        masks: dict[str, Any] = dict(window=30, segment_ids=ids, q_offset=q_start - k_start)
        scores: dict[str, Any] = dict(scale=0.3, softcap=2.0, sinks_N=sinks)
        return reference.attention(q, k, v, **masks, **scores, return_lse=True)

    def everything(f):
        def run(*arrays):
            value, vjp = jax.vjp(f, *arrays)
            return *value, *vjp((d_out, d_lse))

        return jax.jit(run)(*arrays)

    for got, want in zip(everything(kernel), everything(definition), strict=True):
        assert got.dtype == want.dtype and relative_error(got, want) < 3e-6


def test_the_kernel_is_refused_where_it_cannot_run():
    q, k = draw(1, 128, 2, 8), draw(1, 128, 1, 8)
    with pytest.raises(ValueError, match="'pallas' cannot run: .* backend is cpu"):
        attention(q, k, k, impl="pallas")
    with pytest.raises(ValueError, match=r"float16, float32; allowed: bfloat16 or float32"):
        attention(q, k.astype(jnp.float16), k, impl="pallas")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": -1}, "window is -1; allowed: None, or 1 and more"),
        ({"softcap": 0.0}, "softcap is 0.0; allowed: None, or more than 0"),
        ({"sinks_N": np.zeros(3)}, r"sinks_N is \(3,\); allowed: \(2,\)"),
        ({"q_offset": np.zeros((2, 2))}, r"q_offset is \(2, 2\); allowed: a scalar or \(1,\)"),
        (
            {"segment_ids": (np.zeros((1, 5)),) * 2},
            r"segment_ids\[0\] is \(1, 5\); allowed: \(1, 4\)",
        ),
        ({"v_BSKH": np.zeros((1, 5, 1, 8))}, r"v_BSKH is \(1, 5, 1, 8\); allowed: \(1, 4, 1, 8\)"),
        ({"k_BSKH": np.zeros((1, 4, 8))}, r"k_BSKH is \(1, 4, 8\); allowed: four dimensions"),
    ],
)
def test_mistakes_name_the_argument_its_value_and_what_is_allowed(change, message):
    arrays = {"q_BTNH": draw(1, 4, 2, 8), "k_BSKH": draw(1, 4, 1, 8), "v_BSKH": draw(1, 4, 1, 8)}
    with pytest.raises(ValueError, match=message):
        attention(**arrays | change)


def test_offsets_of_queries_and_keys_cancel():
    q, k = draw(1, 7, 2, 8), draw(1, 9, 1, 8)
    shifted = attention(q, k, k, window=3, q_offset=jnp.asarray([105]), k_offset=103)
    np.testing.assert_array_equal(shifted, attention(q, k, k, window=3, q_offset=2))
