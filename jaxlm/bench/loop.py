# SPDX-License-Identifier: Apache-2.0
"""The real loop against the bare step: data, metrics, telemetry and display must cost next to nothing."""

import dataclasses
import io
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.monitoring

from jaxlm.bench.step import set_up, time_steps
from jaxlm.config import RunConfig, resolve
from jaxlm.core.types import Batch, Metrics
from jaxlm.data.prepare import prepare
from jaxlm.telemetry.display import make_display
from jaxlm.train.loop import Run, train
from jaxlm.train.setup import on_mesh
from jaxlm.train.state import TrainState
from jaxlm.train.stop import StopRequest

TURN = 4  # updates of the bare step, between as many of the loop: the machine's speed drifts


def bench_loop(config: RunConfig, num_steps: int) -> dict[str, str]:
    """Name -> text of a table; num_steps: of the bare step, four or more, in turns of four."""
    turns = num_steps // TURN
    total = (turns + 1) * TURN
    quiet = dataclasses.replace(
        config.train, num_steps=total, eval_every=total, checkpoint_every=total,
        sample_prompts=(), eval_batches=1, profile_steps=None,
    )  # fmt: skip
    config = dataclasses.replace(
        config, train=quiet, optim=dataclasses.replace(config.optim, warmup_steps=0)
    )
    resolved = resolve(config, jax.device_count())
    data, display = prepare(config.data), make_display(10, io.StringIO())
    _, state, batch = set_up(config)
    with tempfile.TemporaryDirectory() as folder:
        run = _RunInTurns(config, resolved, data, Path(folder), display)
        run.set_turns(turns, state, batch)
        with on_mesh(run.trainer.mesh, run.trainer.rules), StopRequest() as stop:
            train(run, stop)
        run.close()
    bare, looped = run.bare, run.looped
    around = [(a + b) / 2 for a, b in itertools.pairwise(looped)]
    ratios = [b / s for b, s in zip(bare, around, strict=True)]
    tokens = resolved.tokens_per_step
    return {
        "bare step": f"{tokens / statistics.median(bare):,.0f} tokens/s",
        "real loop": f"{tokens / statistics.median(looped):,.0f} tokens/s",
        "loop / bare": f"{statistics.median(ratios):.1%} (turns: {', '.join(f'{r:.0%}' for r in ratios)})",
        "compilations after the first update": str(run.num_late),
    }


class _RunInTurns(Run):
    """Stands aside every four updates, while the same program runs bare on its own state."""

    def set_turns(self, turns: int, state: TrainState, batch: Batch) -> None:
        """state, batch: of the bare step, whose buffers are given up."""
        self.turns, self.bare_state, self.bare_batch = turns, state, batch
        self.bare, self.looped = list[float](), list[float]()  # medians of turns, in seconds
        self.num_timed, self.num_compiled, self.num_late = 0, 0, 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        self.num_compiled += "backend_compile" in event

    def report(self, step: int, metrics: Metrics, data_wait_s: float) -> None:
        if step == 1:
            self.at_first = self.num_compiled
        super().report(step, metrics, data_wait_s)
        self.num_late = self.num_compiled - self.at_first
        if step % TURN == 0:
            # the first of a turn is dropped on both sides: the other's last update may be in it
            times = self.reporter.step_times
            self.looped.append(statistics.median(times[self.num_timed + 1 :]))
            if len(self.bare) < self.turns:
                seconds, self.bare_state = time_steps(
                    self.trainer, self.bare_state, self.bare_batch, TURN
                )
                self.bare.append(statistics.median(seconds[1:]))
                self.reporter.paused()
            self.num_timed = len(times)

    def evaluate(self, state: TrainState, step: int, max_batches: int | None) -> dict[str, float]:
        # the whole validation set would take longer than what is measured
        return super().evaluate(state, step, 1)
