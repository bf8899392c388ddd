# SPDX-License-Identifier: Apache-2.0
"""What env.json says that attention runs by is what runs, also where the sequence is split.

Legend: T positions
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxlm.nn import kernels
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import rules_of
from jaxlm.train.setup import on_mesh
from pallas_kernels.attention import api, parts

WAYS = ["ring", "all_gather", "ulysses"]


def split_in_four(way: Any) -> Any:
    config = MeshConfig(data=1, context=4, context_attention=way)
    return on_mesh(make_mesh(config, jax.devices()[:4]), rules_of(config))


def trace(impl: Any, T: int) -> None:
    """Forward and backward."""
    q, k = (jax.ShapeDtypeStruct((2, T, n, 128), jnp.bfloat16) for n in (8, 4))
    options: dict[str, Any] = dict(segment_ids_BT=None, sinks_N=None, impl=impl)
    loss = lambda q, k: jnp.sum(kernels.attention(q, k, k, **options).astype(jnp.float32))
    jax.eval_shape(jax.grad(loss, (0, 1)), q, k)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chip", [None, "v6e"])
@pytest.mark.parametrize(("impl", "T"), [("auto", 512), ("auto", 1024), ("reference", 1024)])
def test_what_is_said_is_what_runs(way, chip, impl, T, monkeypatch):
    """1,024 positions are eight chunks of the 128 queries from which on the kernel is worth it."""
    runs: list[str] = []
    choose = api.choose

    def spy(*arguments: Any, **options: Any) -> str:
        runs.append(choose(*arguments, **options))
        return runs[-1]

    monkeypatch.setattr(kernels, "mesh_chip", lambda: chip)
    with split_in_four(way):
        said = kernels.chosen(impl, "auto", rows=2, T=T, V=256)["attention"]
        monkeypatch.setattr(api, "choose", spy)
        monkeypatch.setattr(parts, "choose", spy)
        trace(impl, T)
    assert {*runs} == {said}


@pytest.mark.parametrize("way", ["ring", "all_gather"])
@pytest.mark.parametrize("chip", [None, "v6e"])
def test_xla_is_refused_where_the_sequence_is_split(way, chip, monkeypatch):
    monkeypatch.setattr(kernels, "mesh_chip", lambda: chip)
    message = (
        "^attention impl 'xla' cannot run: the sequence is split over 4 devices; allowed: auto"
    )
    with split_in_four(way):
        with pytest.raises(ValueError, match=message):
            trace("xla", 512)
        with pytest.raises(ValueError, match=message):
            kernels.chosen("xla", "auto", rows=2, T=512, V=256)


def test_xla_runs_where_heads_are_split_instead():
    with split_in_four("ulysses"):
        assert kernels.chosen("xla", "auto", rows=2, T=512, V=256)["attention"] == "xla"
        trace("xla", 512)
