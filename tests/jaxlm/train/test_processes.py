# SPDX-License-Identifier: Apache-2.0
"""What a process of several says when another has gone."""

import atexit

import jax
import pytest

from jaxlm.core.errors import CheckpointError, PeerError
from jaxlm.train.processes import leaving_at_failure


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(atexit, "register", lambda *args: None)  # it ends the process


def fail(message: str) -> None:
    try:
        raise ValueError(message)
    except ValueError as e:
        raise CheckpointError(f"cannot save 00000027: {e}; make room") from e


def test_a_save_that_waits_in_vain_for_another_process_is_no_full_disk(two_processes):
    waited = "Timed out while waiting for async_write_complete barrier."
    with (
        pytest.raises(PeerError, match="another process has gone.*barrier") as raised,
        leaving_at_failure(),
    ):
        fail(waited)
    assert (raised.value.exit_code, "make room" in str(raised.value)) == (75, False)


def test_a_full_disk_is_not_taken_for_another_process(two_processes):
    with (
        pytest.raises(CheckpointError, match="No space left on device; make room"),
        leaving_at_failure(),
    ):
        fail("No space left on device")
