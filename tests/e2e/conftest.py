# SPDX-License-Identifier: Apache-2.0
"""What several files of real runs compare with."""

from pathlib import Path

import pytest

from tests.e2e.runs import Job, write_config


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def whole(tiny_config: Path) -> Path:
    """The directory of a run on one device that nothing interrupted."""
    job = Job(tiny_config, tiny_config.parent / "whole")
    assert job.run() == (0, "")
    return job.run_dir
