# SPDX-License-Identifier: Apache-2.0
"""Which environments mean that there are peers, and what is said of those that mean nothing."""

import pytest

from jaxlm.cli.common import _is_cluster_job
from jaxlm.core.errors import ConfigError

SRUN = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "n[1-4]"}
SALLOC = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SRUN, "OMPI_COMM_WORLD_SIZE", "JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("env", "has_peers"),
    [
        ({}, False),
        ({"SLURM_NTASKS": ""}, False),
        ({"SLURM_NTASKS": "1"}, False),
        (SRUN, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        (SALLOC | {"OMPI_COMM_WORLD_SIZE": "4"}, True),  # mpirun within salloc
    ],
)
def test_peers_are_those_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], has_peers: bool
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert _is_cluster_job() == has_peers


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "x"}, "OMPI_COMM_WORLD_SIZE must be a number of processes, got 'x'"),
        ({"SLURM_NTASKS": "-1"}, "SLURM_NTASKS must be a number of processes, got '-1'"),
        (SALLOC, "SLURM_NTASKS=4, .*: start it with srun, or unset SLURM_NTASKS to run alone"),
    ],
)  # fmt: skip
def test_what_names_no_peers_is_refused(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], told: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=told):
        _is_cluster_job()
