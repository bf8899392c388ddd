# SPDX-License-Identifier: Apache-2.0
"""Which device gets which place, and which dimension which axis."""

import types

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from jaxlm.core.errors import ConfigError
from jaxlm.sharding.config import AXES, MeshConfig
from jaxlm.sharding.feed import local_rows, to_global
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import ROWS, constrain, rules_of, spec
from jaxlm.train.setup import on_mesh


def test_a_slice_is_a_span_of_devices_and_its_axis_the_outermost() -> None:
    mesh = make_mesh(MeshConfig(data=1, slice=2, fsdp=2, model=2))
    assert mesh.axis_names == AXES
    first, second = mesh.devices
    assert {d.id for d in first.flat} == {0, 1, 2, 3}
    assert {d.id for d in second.flat} == {4, 5, 6, 7}


@pytest.mark.parametrize(("found", "asked"), [(2, 1), (2, 4), (1, 2)])
def test_the_number_of_slices_has_to_be_that_of_the_devices(found: int, asked: int) -> None:
    chip = types.SimpleNamespace
    devices = [chip(slice_index=i % found, platform="tpu") for i in range(8)]
    with pytest.raises(ConfigError, match=f"slice={asked}, but the devices belong to {found}"):
        make_mesh(MeshConfig(slice=asked), devices)


@pytest.mark.parametrize("sizes", [{"fsdp": 3}, {"data": 2}, {"data": -1, "context": 16}])
def test_a_mesh_that_is_not_of_these_devices_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="found 8"):
        make_mesh(MeshConfig(**sizes))


def test_every_dimension_has_its_axes() -> None:
    batch = ("slice", "data", "fsdp", "expert")
    assert spec(("batch", "seq", "embed")) == jax.P(batch, "context", None)
    assert spec(("rows", "seq"))[0] == (*batch, "pipeline")
    wide = ("fsdp", "expert", "context")
    assert spec(("layers", "embed", "ffn")) == jax.P("pipeline", wide, "model")
    assert spec(("vocab", "embed")) == jax.P("model", wide)
    of_expert = spec(("layers", "expert", "embed", "ffn"))
    assert of_expert == jax.P("pipeline", "expert", ("fsdp", "context"), "model")


def test_a_strategy_is_a_table_and_parameters_do_not_know_it() -> None:
    mesh, tables = make_mesh(MeshConfig()), {}
    for way in ("ring", "all_gather", "ulysses"):
        with on_mesh(mesh, rules_of(MeshConfig(context_attention=way))):
            tables[way] = spec(("query_seq", "query_heads")), spec(("key_seq",))
            assert spec(("embed", "heads")) == jax.P(("fsdp", "expert", "context"), "model")
    assert tables == {
        "ring": (jax.P("context", "model"), jax.P("context")),
        "all_gather": (jax.P("context", "model"), jax.P(None)),
        "ulysses": (jax.P(None, ("model", "context")), jax.P(None)),
    }


def test_what_does_not_divide_stays_whole() -> None:
    """One row of one position, as in decoding, on a mesh that splits both."""
    with on_mesh(make_mesh(MeshConfig(data=1, fsdp=2, context=2, model=2))):
        one = jax.jit(lambda x: constrain(x, ("batch", "residual_seq", "embed")))
        assert one(np.ones((1, 1, 3))).shape == (1, 1, 3)
        assert one(np.ones((2, 4, 3))).sharding.shard_shape((2, 4, 3)) == (1, 1, 3)


def test_a_batch_arrives_split_by_rows_and_positions() -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, pipeline=2, context=2))
    tokens = np.arange(32, dtype=np.int32).reshape(4, 8)
    rows = local_rows(mesh, 4)
    placed = to_global({"tokens": tokens[rows]}, mesh, 4, rows)["tokens"]
    assert placed.sharding.spec == ROWS
    assert {s.data.shape for s in placed.addressable_shards} == {(1, 4)}
    np.testing.assert_array_equal(placed, tokens)


ON_TOPOLOGIES = [
    ("v5p:4x4x4", 1, {"fsdp": 8, "model": 8}),
    ("v5p:4x4x4", 1, {"pipeline": 2, "fsdp": 4, "context": 2, "model": 4}),
    ("v6e:8x8", 1, {"fsdp": 32, "model": 2}),
    ("v6e:4x4", 2, {"slice": 2, "fsdp": 8, "model": 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "slices", "sizes"), ON_TOPOLOGIES, ids=str)
def test_axes_need_not_be_those_of_the_torus(
    topology: str, slices: int, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'jaxlm[tpu]'")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options = {"num_slices": slices} if slices > 1 else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    mesh = make_mesh(MeshConfig(data=1, **sizes), list(found.devices))
    assert mesh.shape == {axis: sizes.get(axis, 1) for axis in AXES}
    for i, devices in enumerate(mesh.devices):
        assert {getattr(device, "slice_index", 0) for device in devices.flat} == {i}
