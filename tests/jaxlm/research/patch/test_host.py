# SPDX-License-Identifier: Apache-2.0
"""Training that is fed from outside.  What is no fair training: bench/attacks/guests.py.

The guests are a few lines of plain Python behind the real walls and pipes: no model, no jax.
"""

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxlm.bench.attacks import guests
from jaxlm.core.errors import RunError
from jaxlm.research.patch import host
from jaxlm.research.sandbox import sandbox
from jaxlm.research.sandbox.sandbox import Limits

needs_walls = pytest.mark.skipif(sandbox.level() == "none", reason="this machine has no wall")


class Zeros:
    """A source of batches, which counts them."""

    given = 0

    def batch(self, step: int) -> dict[str, np.ndarray]:
        assert step == self.given
        self.given += 1
        return {name: np.zeros(guests.SHAPE, np.int32) for name in host.BATCH}


def fed(folder: Path, answer: str = "") -> tuple[host.Fed, int]:
    """What came of a guest, and how many batches it was given."""
    code, source = guests.TRAINS.replace("ANSWER", answer).replace("END", "leave()"), Zeros()
    guest = guests.guest(code, folder, Limits(wall_s=30))
    return host.feed_guest(guest, source.batch, guests.UPDATES), source.given


@needs_walls
def test_an_honest_guest_gets_each_batch_once_and_leaves_its_parameters(tmp_path: Path) -> None:
    found, given = fed(tmp_path)
    assert (found.losses, found.params) == ([1.0] * guests.UPDATES, b"parameters")
    assert found.claims == {"params": 5, "flops": 7}
    assert given == guests.UPDATES


@needs_walls
def test_a_run_ends_with_its_first_loss_that_is_not_finite(tmp_path: Path) -> None:
    found, given = fed(tmp_path, "loss = math.nan if updates == 2 else 1.0")
    assert (len(found.losses), given) == (2, 2)
    assert math.isnan(found.losses[-1])


@pytest.mark.parametrize(
    "claims",
    ["", "{", "[]", '{"params": 1}', '{"params": NaN, "flops": 1}', '{"params": -1, "flops": 1}',
     '{"params": 1, "flops": 1' + "0" * 400 + "}", "[" * 4000, '{"params": [], "flops": 1}'],
)  # fmt: skip
def test_claims_that_are_no_counts_are_refused(claims: str) -> None:
    process: Any = SimpleNamespace(stdout=io.BytesIO(claims.encode() + b"\n"))
    with pytest.raises(RunError, match="no counts of its parameters and FLOPs"):
        host._claims(process)
