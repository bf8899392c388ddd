# SPDX-License-Identifier: Apache-2.0
"""A fair answer is scored as it deserves.  What is no fair answer: bench/attacks/guests.py.

The guests are a few lines of plain Python behind the real walls and pipes: no model, no jax.
"""

from pathlib import Path

import pytest

from jaxlm.bench.attacks import guests
from jaxlm.research.sandbox import sandbox

pytestmark = pytest.mark.skipif(sandbox.level() == "none", reason="this machine has no wall")


def test_an_honest_answer_is_scored_as_it_deserves(tmp_path: Path) -> None:
    scored = guests.score(tmp_path, guests.predicts())
    assert len(scored) == len(guests.pieces())
    guests.check_fair(scored)


def test_who_calls_all_equally_likely_guesses_one(tmp_path: Path) -> None:
    scored = guests.score(tmp_path, guests.predicts("say(*EVEN * ROWS)"))
    assert sum(score.correct for score in scored) == sum(
        int((piece.targets == 0).sum()) for piece in guests.pieces()
    )
