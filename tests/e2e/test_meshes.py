# SPDX-License-Identifier: Apache-2.0
"""The same updates on every mesh, and checkpoints that move between them, two processes included."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.rewrite import MESHES
from tests.e2e.runs import ROOT, Job, assert_same_bits, column, state_of
from tests.e2e.workshop import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = ("TrainConfig.num_steps=20", "TrainConfig.sample_prompts=()")
FSDP = ("MeshConfig.data=1", "MeshConfig.fsdp=-1")
JOBS = {  # devices, processes, overrides
    "one": (1, 1, SHORT),
    "data": (8, 1, SHORT),
    "fsdp": (8, 1, (*SHORT, *FSDP)),
    "fsdp-model": (8, 1, (*SHORT, *FSDP, "MeshConfig.model=2")),
    "two": (1, 2, SHORT),
    "two-fsdp-model": (4, 2, (*SHORT, *FSDP, "MeshConfig.model=2")),
}


@pytest.fixture(scope="module")
def trained(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of every job."""
    folder = tmp_path_factory.mktemp("meshes")
    for name, layout in JOBS.items():
        assert Job(tiny_config, folder / name, *layout).run() == (0, "")
    return folder


def test_twenty_updates_agree_on_every_mesh(trained: Path):
    want = column(trained / "one", "train/loss_nats")
    assert len(want) == 20
    assert want[-1] < want[0] - 0.5
    for name in JOBS:
        got = column(trained / name, "train/loss_nats")
        print(name, np.max(np.abs(got / want - 1)))
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("written_on", JOBS)
def test_one_process_reads_it_on_any_mesh(trained: Path, written_on: str):
    want = state_of(trained / written_on)
    for mesh in MESHES:
        assert_same_bits(state_of(trained / written_on, **mesh), want)


def test_two_processes_read_it_on_any_mesh(trained: Path, tmp_path: Path):
    address = f"127.0.0.1:{free_port()}"
    words = [sys.executable, "-m", "tests.e2e.rewrite", address]
    runs = [str(trained / name) for name in JOBS]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([*words, i, str(tmp_path), *runs], env=env) for i in "01"]
    assert [process.wait(200) for process in both] == [0, 0]
    for name in JOBS:
        want = state_of(trained / name)
        for i in range(len(MESHES)):
            got = state_of(trained / name, folder=tmp_path / f"{name}-{i}")
            assert_same_bits(got, want)
