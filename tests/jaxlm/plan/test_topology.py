# SPDX-License-Identifier: Apache-2.0
"""Names of slices: devices, rings, and what a mistake is told."""

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.plan.chips import CHIPS
from jaxlm.plan.collectives import Collective
from jaxlm.plan.network import Network
from jaxlm.plan.topology import parse_topology, valid_shapes


@pytest.mark.parametrize(
    ("name", "devices"),
    [("v6e:16x16", 256), ("v5p:4x4x4", 64), ("v5p:8x8x8", 512), ("tpu7x:4x4x4", 128),
     ("v5e:2x4", 8), ("h100:8", 8), ("v6e:16x16:2", 512), ("tpu7x:2x2x1:3", 24)],
)  # fmt: skip
def test_devices_of_a_slice(name: str, devices: int) -> None:
    topology = parse_topology(name)
    assert (topology.num_devices, topology.name) == (devices, name)


@pytest.mark.parametrize("chip", CHIPS)
def test_every_listed_slice_is_accepted(chip: str) -> None:
    for shape in valid_shapes(CHIPS[chip]):
        assert parse_topology(f"{chip}:{shape}").name == f"{chip}:{shape}"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v9:4x4", "chips: v5e, v5p, v6e"),
        ("v6e:3x5", "slices: 1x1, 2x2"),
        ("v6e", "slices: 1x1, 2x2"),
        ("v5p:4x8x4", "2x2x1"),
        ("h100:3", "slices: 1, 2, 4, 8"),
        ("v6e:2x2:0", "the number of slices: 1 to 64"),
        ("v6e:2x2:65", "the number of slices: 1 to 64"),
        ("v6e:2x2:two", "the number of slices: 1 to 64.*such as v6e:2x2:2"),
        ("h100:8:2", "of TPUs alone, such as v6e:16x16:2"),
    ],
)
def test_what_there_is_is_listed(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_topology(name)


def test_a_whole_torus_uses_all_links_both_ways() -> None:
    """v5p 4x4x4: three rings of two links of 90 GB/s each."""
    topology = parse_topology("v5p:4x4x4")
    coords = tuple((x, y, z, 0) for z in range(4) for y in range(4) for x in range(4))
    network = Network(topology, coords)
    assert network.bandwidth(()) == 6 * 90e9
    row = (0, 1, 2, 3)
    assert network.sides(row) == (4, 1, 1)
    assert network.bandwidth(row) == 2 * 90e9
    assert network.bandwidth((0, 1)) == 90e9  # no way round


def test_a_collective_takes_its_bytes_and_its_hops() -> None:
    topology = parse_topology("v6e:2x2")
    network = Network(topology, ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)))
    gather = Collective("g", "all-gather", 18e5, (0, 1, 2, 3), False)
    assert network.seconds(gather) == pytest.approx(18e5 / 180e9 + 2e-6)


def test_slices_are_joined_by_a_slower_network() -> None:
    network = Network(parse_topology("v6e:2x2:2"), ())
    far = Collective("r", "all-reduce", 18e5, (0, 4), True, is_far=True)
    assert network.seconds(far) == pytest.approx(18e5 / 12.5e9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:1x1", "v6e:1x1", "v6e:2x4", "v5p:2x2x1", "v6e:2x2:2"])
def test_the_smallest_slices_can_be_compiled_for(name: str) -> None:
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'jaxlm[tpu]'")
    from jaxlm.plan.compile_step import devices_of

    topology = parse_topology(name)
    found = devices_of(topology)
    assert len(found) == topology.num_devices
    assert len({getattr(d, "slice_index", 0) for d in found}) == topology.num_slices
