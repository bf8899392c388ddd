# SPDX-License-Identifier: Apache-2.0
"""A profiler trace holds the updates that were asked for, in a resumed run too."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from jaxlm.train.config import TrainConfig
from jaxlm.train.loop import Run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in its order."""
    found: list[str] = []
    for where, name in (
        (jax.profiler, "start_trace"), (jax.profiler, "stop_trace"), (jax, "block_until_ready"),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, lambda *_, name=name: found.append(name))
    return found


@pytest.mark.parametrize(("resumed_at", "traced"), [(0, [2, 3, 4]), (2, [3, 4]), (4, []), (6, [])])
def test_the_updates_that_are_asked_for_are_computed_within_the_trace(
    calls: list[str], resumed_at: int, traced: list[int]
) -> None:
    config = TrainConfig(num_steps=6, profile_steps=(2, 4))
    reporter = SimpleNamespace(event=lambda *_: calls.append("told"))
    run: Any = SimpleNamespace(
        config=SimpleNamespace(train=config), run_dir=Path(), reporter=reporter, is_profiling=False
    )
    for step in range(resumed_at + 1, config.num_steps + 1):
        Run.begin_profile(run, step)
        calls.append(f"update {step}")
        Run.end_profile(run, step, {})
    before, after = ["start_trace"], ["block_until_ready", "stop_trace", "told"]
    expected = [f"update {step}" for step in range(resumed_at + 1, 7)]
    if traced:
        begin, end = (
            expected.index(f"update {traced[0]}"),
            expected.index(f"update {traced[-1]}") + 1,
        )
        expected = [*expected[:begin], *before, *expected[begin:end], *after, *expected[end:]]
    assert calls == expected
