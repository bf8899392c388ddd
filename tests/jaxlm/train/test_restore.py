# SPDX-License-Identifier: Apache-2.0
"""Where a run can be used that was trained on many devices."""

import pytest

from jaxlm.sharding.config import MeshConfig
from jaxlm.train.restore import mesh_here

MESHES = [
    MeshConfig(data=1, fsdp=2, expert=2, model=2),
    MeshConfig(slice=2, pipeline=2, context=2, pipeline_repeats=2, context_attention="all_gather"),
    MeshConfig(fsdp=-1, data=8),
]


@pytest.mark.parametrize("mesh", MESHES)
def test_a_run_of_any_mesh_can_be_used_on_one_device_and_elsewhere_on_its_own(
    mesh: MeshConfig,
) -> None:
    assert set(mesh_here(mesh, 1).shape(1).values()) == {1}
    assert mesh_here(mesh, 8) == mesh
