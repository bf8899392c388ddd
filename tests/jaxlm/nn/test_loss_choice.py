# SPDX-License-Identifier: Apache-2.0
"""On a mesh the loss refuses what it cannot take, and what runs is what is told.

Legend: B batch  T positions  D width  V vocabulary
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxlm.nn import experts, kernels
from jaxlm.train.setup import on_mesh
from pallas_kernels.cross_entropy import xla
from tests.jaxlm.nn.test_kernels import close, mesh_of

B, T, D, V = 4, 6, 16, 32
ARRAYS: dict[str, Any] = {
    "x_BTD": jnp.sin(jnp.arange(B * T * D, dtype=jnp.float32)).reshape(B, T, D),
    "table_VD": jnp.cos(jnp.arange(V * D, dtype=jnp.float32)).reshape(V, D),
    "targets_BT": jnp.arange(B * T).reshape(B, T),
    "weights_BT": jnp.ones((B, T)),
}
OPTIONS: dict[str, Any] = {"softcap": None, "z_loss": 0.1, "impl": "xla"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"softcap": 0.0}, "softcap is 0.0; allowed"),
        ({"softcap": -3.0}, "softcap is -3.0; allowed"),
        ({"z_loss": jnp.ones(3)}, "z_loss is .*; allowed: a number"),
        ({"x_BTD": jnp.ones((B, T, D), jnp.float16)}, "x is float16; allowed: bfloat16, float32"),
        ({"x_BTD": jnp.ones((B, T, D), int)}, "x is int32; allowed: bfloat16, float32"),
        ({"targets_BT": jnp.ones((B, T))}, "targets are float32; allowed: integers"),
        ({"weights_BT": jnp.ones((B, 3))}, r"weights \(4, 3\) must be \(B, T, D\), \(B, T\)"),
        ({"weights_BT": jnp.ones((T, B))}, r"weights \(6, 4\) must be \(B, T, D\), \(B, T\)"),
        ({"table_VD": jnp.ones((V, 8))}, r"x \(24, 16\) and table \(32, 8\) must be \(R, D\)"),
        ({"impl": "cuda"}, "unknown cross-entropy impl 'cuda'; allowed: auto"),
        ({"impl": "pallas"}, "'pallas' needs a TPU"),
    ],
)
def test_bad_input_is_named_on_a_mesh(change: dict, message: str) -> None:
    with on_mesh(mesh_of({"fsdp": 2, "model": 2})), pytest.raises(ValueError, match=message):
        kernels.linear_cross_entropy(**ARRAYS | OPTIONS | change)


def test_the_definition_runs_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(x_BTD, table_VD, impl):
        some = ARRAYS | OPTIONS | {"x_BTD": x_BTD, "table_VD": table_VD, "impl": impl}
        return kernels.linear_cross_entropy(**some).loss

    run = jax.value_and_grad(loss, (0, 1))
    arrays = ARRAYS["x_BTD"], ARRAYS["table_VD"]
    with on_mesh(mesh_of({"fsdp": 2, "model": 2})):
        chunked = jax.jit(lambda *arrays: run(*arrays, "xla"))(*arrays)
        monkeypatch.setattr(xla, "statistics_and_gradients", None)
        monkeypatch.setattr(xla, "statistics", None)
        close(jax.jit(lambda *arrays: run(*arrays, "reference"))(*arrays), chunked)


def test_what_a_wide_model_runs_by_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its widths where they are whole on a device, and where the mesh splits the experts'."""
    monkeypatch.setattr(kernels, "mesh_chip", lambda: "v5p")
    monkeypatch.setattr(experts, "mesh_tpu", lambda: "v5p")
    of = lambda D: kernels.chosen("auto", "auto", rows=8, T=512, V=128256, D=D)["loss"]
    with on_mesh(mesh_of({"model": 8})):
        assert (of(8192), of(65536)) == ("pallas", "xla")
        assert experts.chosen("auto", 512, 65536, "bfloat16") == "pallas"
    assert experts.chosen("auto", 512, 65536, "bfloat16") == "xla"
    with pytest.raises(ValueError, match="x has a width of 65536; .* allows up to"):
        kernels.chosen("auto", "pallas", rows=8, T=512, V=128256, D=65536)
