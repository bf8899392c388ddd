# SPDX-License-Identifier: Apache-2.0
"""What every test of a kernel in TPU interpret mode is held to."""

from collections.abc import Iterator

import pytest
from jax.experimental.pallas import tpu as pltpu


@pytest.fixture(autouse=True)
def no_races(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The interpreter prints the races that it finds, and keeps its memory if a kernel raises."""
    yield
    pltpu.reset_tpu_interpret_mode_state()
    printed = capsys.readouterr().out
    assert "RACE DETECTED" not in printed, printed
