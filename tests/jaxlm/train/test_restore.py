# SPDX-License-Identifier: Apache-2.0
"""Where a run can be used that was trained on many devices."""

import dataclasses

import jax
import pytest

from jaxlm.bench.step import set_up
from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.nn import kernels
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.train.restore import fitted, runnable
from jaxlm.train.session import describe_kernels, describe_memory
from tests.jaxlm.train.conftest import CONFIG

MESHES = [
    MeshConfig(data=1, fsdp=2, context=2, model=2),
    MeshConfig(data=2, pipeline=2, context=2, pipeline_repeats=1, context_attention="all_gather"),
    MeshConfig(fsdp=-1, data=8),
]


@pytest.mark.parametrize("mesh", MESHES)
def test_a_run_of_any_mesh_can_be_used_on_one_device_and_elsewhere_on_its_own(mesh: MeshConfig):
    config = dataclasses.replace(CONFIG, mesh=mesh)
    found, count = fitted(config, 1)
    assert (set(found.mesh.shape(1).values()), count) == ({1}, 1)
    assert fitted(config, 8) == (config, 8)


def test_elsewhere_it_takes_all_devices_or_else_one(monkeypatch):
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(data=1, fsdp=4, model=2))
    found, count = fitted(config, 4)
    assert (found.mesh.shape(4)["fsdp"], count) == (4, 4)
    assert fitted(config, 3)[1] == 1  # no batch of four splits over three
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ConfigError, match="fsdp=4, model=2 needs 8 devices, found 3"):
        fitted(config, 3)


def with_model(**changes: str) -> RunConfig:
    return dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **changes))


@pytest.mark.parametrize("part", ["attention", "loss"])
def test_a_kernel_that_cannot_run_is_refused_wherever_a_step_is_built(part: str):
    for use in (describe_kernels, describe_memory, set_up):
        with pytest.raises(ConfigError, match=f"{part} impl 'pallas' cannot run: .* to 'auto'"):
            use(with_model(**{f"{part}_impl": "pallas"}))


def test_a_run_of_other_devices_goes_without_their_kernels():
    mesh = make_mesh(CONFIG.mesh, jax.devices()[:1])
    found, notice = runnable(with_model(attention_impl="pallas", loss_impl="xla"), mesh)
    assert found == with_model(attention_impl="auto", loss_impl="xla")
    assert notice is not None and "attention impl 'pallas' cannot run" in notice
    assert runnable(CONFIG, mesh) == (CONFIG, None)


def test_the_choices_are_told_at_the_start():
    line = describe_kernels(with_model(attention_impl="reference"))["kernels"]
    assert line.startswith("attention reference, loss reference")


def test_a_damaged_table_is_no_mistake_of_the_config(monkeypatch):
    def fail(*_: object) -> None:
        raise ValueError("blocks.json is damaged: no list of rows")

    monkeypatch.setattr(kernels, "chosen", fail)
    with pytest.raises(ConfigError, match=r"^blocks.json is damaged: no list of rows$"):
        describe_kernels(CONFIG)
