# SPDX-License-Identifier: Apache-2.0
"""What attention refuses, in one line and by every implementation alike; and empty arrays.

Legend: B batch  T query positions  N query heads  V width of v
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.api import attention
from pallas_kernels.attention.merge import merge
from pallas_kernels.attention.parts import gradients

NAN, INF = float("nan"), float("inf")
Q, KV = np.ones((1, 4, 2, 8), np.float32), np.ones((1, 4, 1, 8), np.float32)
IDS, LSE = np.zeros((1, 4), np.int32), np.ones((1, 2, 4), np.float32)
NUMBERS = [
    ({"scale": NAN}, "scale is nan; allowed: None, or a finite number"),
    ({"scale": "3"}, "scale is '3'; allowed: None, or a finite number"),
    ({"causal": "no"}, "causal is 'no'; allowed: True or False"),
    ({"window": NAN}, "window is nan; allowed: None, or 1 and more, to 1073741824"),
    ({"window": 1.5}, "window is 1.5; allowed: None, or 1 and more"),
    ({"window": True}, "window is True; allowed: None, or 1 and more"),
    ({"window": "4"}, "window is '4'; allowed: None, or 1 and more"),
    ({"window": 2**31 - 1}, "window is 2147483647; allowed: None, or 1 and more, to 1073741824"),
    ({"window": 2**40}, "window is 1099511627776; allowed: None, or 1 and more, to 1073741824"),
    ({"softcap": NAN}, "softcap is nan; allowed: None, or more than 0"),
    ({"softcap": INF}, "softcap is inf; allowed: None, or more than 0"),
    ({"softcap": "30"}, "softcap is '30'; allowed: None, or more than 0"),
    ({"q_offset": 0.5}, "q_offset is 0.5; allowed: whole numbers from -268435456 to 268435456"),
    ({"k_offset": 2**31}, "k_offset is 2147483648; allowed: whole numbers"),
    ({"q_offset": None}, "q_offset is None; allowed: whole numbers"),
    ({"logit_bound": -1.0}, "logit_bound is -1.0; allowed: None, or 0 and more"),
    ({"logit_bound": NAN}, "logit_bound is nan; allowed: None, or 0 and more"),
    ({"chip": "v9"}, "unknown chip 'v9'; allowed: v5e, v5p, v6e, tpu7x, h100, h200, a100, l4"),
    ({"chip": "V5E"}, "unknown chip 'V5E'"),
    ({"chip": "h1000"}, "unknown chip 'h1000'"),
]
ARRAYS = [
    ({"q_BTNH": Q.tolist()}, "q_BTNH is a list; allowed: an array"),
    ({"sinks_N": [1.0, 2.0]}, "sinks_N is a list; allowed: an array"),
    ({"sinks_N": np.ones(2, np.int32)}, "sinks_N is int32; allowed: floating point"),
    ({"segment_ids": IDS}, "segment_ids is an array; allowed: None, or those of queries and of"),
    ({"segment_ids": (IDS,)}, "segment_ids is a tuple of 1; allowed: None, or those of queries"),
    ({"segment_ids": (IDS,) * 3}, "segment_ids is a tuple of 3; allowed: None, or those of"),
    ({"segment_ids": (IDS, None)}, r"segment_ids\[1\] is None; allowed: an array"),
    ({"segment_ids": (IDS.tolist(), IDS)}, r"segment_ids\[0\] is a list; allowed: an array"),
    ({"segment_ids": (IDS + 0.5, IDS)}, r"segment_ids\[0\] is float64; allowed: integers"),
    ({"q_offset": np.zeros(1)}, "q_offset is float64; allowed: integers"),
    ({"logit_bound": np.ones((7, 3))}, r"logit_bound is \(7, 3\); allowed: a scalar or \(1, 2\)"),
    ({"q_BTNH": Q[..., :0], "k_BSKH": KV[..., :0]}, r"q_BTNH is \(1, 4, 2, 0\); allowed: heads"),
    ({"k_BSKH": KV[:, :, :0], "v_BSKH": KV[:, :, :0]}, r"k_BSKH is \(1, 4, 0, 8\); allowed: he"),
]


@pytest.mark.parametrize("options", [{}, {"impl": "reference"}, {"impl": "pallas", "chip": "v5e"}])
@pytest.mark.parametrize(("change", "message"), NUMBERS + ARRAYS)
def test_mistakes_are_named_by_every_implementation(change, message, options):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        attention(**{"q_BTNH": Q, "k_BSKH": KV, "v_BSKH": KV} | options | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["scale", "softcap", "window", "causal"])
def test_what_has_to_be_known_when_traced_says_so(name):
    with pytest.raises(ValueError, match=f"^{name} is a traced array; allowed: "):
        jax.jit(lambda x: attention(Q, KV, KV, **{name: x}))(1)


@pytest.mark.parametrize("impl", ["auto", "reference", "xla"])
@pytest.mark.parametrize("dtypes", ["iii", "bbb", "ccc", "dfd", "Eff", "ffe", "fif"])
def test_only_floats_of_one_kind_are_multiplied(dtypes, impl):
    """Of NumPy's letters, with E for bf16."""
    kind = lambda letter: jnp.bfloat16 if letter == "E" else letter
    arrays = [x.astype(kind(d)) for x, d in zip((Q, KV, KV), dtypes, strict=True)]
    names = ", ".join(x.dtype.name for x in arrays)
    allowed = "float16, bfloat16 or float32, one for all"
    message = f"^q_BTNH, k_BSKH and v_BSKH are {names}; allowed: {allowed}$"
    with pytest.raises(ValueError, match=message):
        attention(*arrays, impl=impl)
    with pytest.raises(ValueError, match=message):
        gradients(*arrays, Q, LSE, Q)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": -1}, "window is -1; allowed: None, or 1 and more"),
        ({"softcap": 0}, "softcap is 0; allowed: None, or more than 0"),
        ({"k_BSKH": KV[:, :3]}, r"v_BSKH is \(1, 4, 1, 8\); allowed: \(1, 3, 1, 8\)"),
        ({"out_BTNH": Q[:, :1]}, r"out_BTNH is \(1, 1, 2, 8\); allowed: \(1, 4, 2, 8\)"),
        ({"d_out_BTNH": None}, "d_out_BTNH is None; allowed: an array"),
        ({"lse_BNT": LSE.swapaxes(1, 2)}, r"lse_BNT is \(1, 4, 2\); allowed: \(1, 2, 4\)"),
        ({"impl": "xla"}, "attention impl 'xla' has no gradients by parts; allowed: auto, ref"),
        ({"chip": "v9"}, "unknown chip 'v9'; allowed: v5e"),
    ],
)
def test_gradients_by_parts_name_mistakes_too(change, message):
    arrays: dict[str, Any] = {"q_BTNH": Q, "k_BSKH": KV, "v_BSKH": KV, "lse_BNT": LSE}
    with pytest.raises(ValueError, match=f"^{message}"):
        gradients(**arrays | {"out_BTNH": Q, "d_out_BTNH": Q} | change)


def test_parts_of_other_shapes_are_not_merged():
    for out, lse, message in (
        (Q[:, :1], LSE, r"outs\[1\] is \(1, 1, 2, 8\); allowed: \(1, 4, 2, 8\)"),
        (Q, LSE.swapaxes(1, 2), r"lses\[1\] is \(1, 4, 2\); allowed: \(1, 2, 4\)"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            merge([Q, out], [LSE, lse])
    with pytest.raises(ValueError, match=r"^outs\[0\] is \(4, 2, 8\); allowed: four dimensions"):
        merge([Q[0]], [LSE[0]])


def test_parts_may_be_stacked_and_an_infinite_sum_does_not_turn_into_none():
    stacked, listed = merge(np.stack([Q, Q]), np.stack([LSE, LSE])), merge([Q, Q], [LSE, LSE])
    for a, b in zip(stacked, listed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(merge([Q, Q], [LSE + INF, LSE])[1]).all()


@pytest.mark.parametrize("impl", ["auto", "reference", "xla"])
@pytest.mark.parametrize(("B", "T"), [(0, 4), (1, 0)])
def test_no_queries_give_no_rows_and_no_gradient(B, T, impl):
    arrays = [jnp.asarray(np.resize(x, (B, T, *x.shape[2:]))) for x in (Q, KV, KV)]
    (out, lse), vjp = jax.vjp(lambda *a: attention(*a, impl=impl, return_lse=True), *arrays)
    assert out.shape == (B, T, 2, 8) and lse.shape == (B, 2, T)
    assert [d.shape for d in vjp((out, lse))] == [x.shape for x in arrays]
    assert [d.shape for d in gradients(*arrays, out, lse, out)] == [x.shape for x in arrays]


@pytest.mark.parametrize("sink", [None, 0.5])
def test_without_keys_a_query_sees_nothing_but_its_sink(sink):
    sinks_N = None if sink is None else np.full(2, sink, np.float32)
    out, lse = attention(Q, KV[:, :0], KV[:, :0], sinks_N=sinks_N, return_lse=True)
    np.testing.assert_array_equal(out, 0 * Q)
    np.testing.assert_array_equal(lse, np.full((1, 2, 4), -INF if sink is None else sink))
    dq, dk, _ = gradients(Q, KV[:, :0], KV[:, :0], out, lse, Q)
    assert not dq.any() and dk.shape == (1, 0, 1, 8)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("q_offset", [-(2**28), 0, 2**28])
def test_the_widest_window_at_the_farthest_offsets_is_none(causal, q_offset):
    options: dict[str, Any] = dict(causal=causal, q_offset=jnp.asarray(q_offset), k_offset=2**28)
    q, k, v = (np.random.default_rng(0).normal(size=x.shape).astype("f") for x in (Q, KV, KV))
    found, want = (attention(q, k, v, window=w, **options) for w in (2**30, None))
    np.testing.assert_array_equal(found, want)


def test_offsets_without_a_sign_do_not_wrap():
    options = dict(q_offset=jnp.uint32(0), k_offset=jnp.uint32(5))
    assert not attention(Q, KV, KV, **options).any()  # all keys lie ahead


@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_kernels_say_that_they_have_no_second_derivative(chip):
    f = lambda q: jnp.sum(attention(q, KV, KV, impl="pallas", chip=chip))
    twice = jax.grad(lambda q: jnp.sum(jax.grad(f)(q) ** 2))
    with pytest.raises(NotImplementedError, match=r"differentiated once.* use impl='reference'"):
        jax.eval_shape(twice, Q)
    assert jax.eval_shape(jax.grad(f), Q).shape == Q.shape
