# SPDX-License-Identifier: Apache-2.0
"""The bound of the logits that QK-norm gives: no logit is beyond it, none that can be is far under.

Legend: B batch  T positions  D model width  N heads  H head width
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxlm.nn import kernels
from jaxlm.nn.attention import Attention, Where
from jaxlm.nn.rope import rope_frequencies, rope_tables
from pallas_kernels.attention import tpu
from pallas_kernels.attention.masks import Mask
from tests.reference.compare import quick

INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
N, H, T = 2, 16, 40
D = N * H
RNG = np.random.default_rng(0)
GAINS = [np.where(np.arange(H) == 5, 3.0, RNG.normal(0, 0.7, H)) for _ in range(2)]
LAYER = Attention(
    num_heads=N,
    kv_heads=N,
    head_dim=H,
    num_layers=1,
    window=None,
    softcap=None,
    has_sinks=False,
    qk_norm_eps=1e-6,
    impl="auto",
)


def params() -> dict[str, Any]:
    """Queries and keys are the input, by heads."""
    rng = np.random.default_rng(1)
    split = np.eye(D, dtype=np.float32).reshape(D, N, H)
    matrices = {"wq": split, "wk": split, "wv": split, "wo": rng.normal(size=(N, H, D))}
    scales = {f"{name}_norm": {"scale": g} for name, g in zip("qk", GAINS, strict=True)}
    return jax.tree.map(jnp.float32, matrices | scales)


def where(scaling: str = "none") -> Where:
    frequencies = rope_frequencies(H, 100.0, scaling, 4.0, 16)
    return Where(rope_tables(jnp.arange(T)[None], *frequencies), None, None)


@pytest.mark.parametrize("scaling", ["none", "yarn"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("direction", ["any", "of the largest scale"])
def test_no_logit_is_beyond_the_bound(scaling, dtype, direction, monkeypatch):
    seen = {}

    def spy(q_BTNH, k_BTNH, v_BTNH, *, logit_bound, **_):
        seen.update(q=q_BTNH, k=k_BTNH, bound=float(logit_bound))
        return q_BTNH

    monkeypatch.setattr(kernels, "attention", spy)
    x_BTNH = RNG.normal(size=(1, T, N, H)) * 10.0 ** RNG.uniform(-2, 4, (1, T, N, 1))
    if direction != "any":
        x_BTNH *= np.arange(H) == 5
    x_BTD = jnp.asarray(x_BTNH.reshape(1, T, D), dtype)
    LAYER.apply({"params": params()}, x_BTD, where(scaling), None)
    q, k = (np.asarray(seen[name], np.float64) for name in "qk")
    largest = np.abs(np.einsum("btnh,bsnh->bnts", q, k)).max() * H**-0.5
    assert largest <= seen["bound"]
    if direction != "any":  # a query and a key at the same position: they meet the bound
        assert seen["bound"] < 1.04 * largest


def test_gradients_do_not_see_the_bound(monkeypatch):
    """Not even those of the scales that it is made of."""
    x_BTD = jnp.asarray(RNG.normal(size=(1, T, D)), jnp.float32)

    def gradients(has_bound: bool) -> Any:
        def kernel(q, k, v, *, logit_bound, **_):
            options = tpu.Options(Mask(), H**-0.5, None, "v5p", INTERPRET)
            bound = logit_bound if has_bound else None
            return tpu.attention(q, k, v, None, None, 0, 0, bound, options)[0]

        monkeypatch.setattr(kernels, "attention", kernel)
        loss = lambda p: jnp.sum(jnp.sin(LAYER.apply({"params": p}, x_BTD, where(), None)[0]))
        return quick(jax.grad(loss))(params())

    jax.tree.map(np.testing.assert_array_equal, gradients(True), gradients(False))
