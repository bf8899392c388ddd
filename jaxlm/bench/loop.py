# SPDX-License-Identifier: Apache-2.0
"""The real loop against the bare step: data, metrics, telemetry and display must cost next to nothing."""

import dataclasses
import io
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.monitoring

from jaxlm.bench.step import set_up, time_steps
from jaxlm.config import RunConfig, resolve
from jaxlm.core.types import Metrics
from jaxlm.data.prepare import prepare
from jaxlm.telemetry.display import make_display
from jaxlm.telemetry.writer import latest_rows
from jaxlm.train.loop import Run, train
from jaxlm.train.setup import on_mesh
from jaxlm.train.state import TrainState
from jaxlm.train.stop import StopRequest

ROUNDS = 3  # of bare step and loop in turn: the machine's speed drifts


def bench_loop(config: RunConfig, num_steps: int) -> dict[str, str]:
    """Name -> text of a table."""
    quiet = dataclasses.replace(
        config.train, num_steps=num_steps, eval_every=num_steps, checkpoint_every=num_steps,
        sample_prompts=(), eval_batches=1,
    )  # fmt: skip
    config = dataclasses.replace(
        config, train=quiet, optim=dataclasses.replace(config.optim, warmup_steps=0)
    )
    trainer, state, batch = set_up(config)
    _, state = time_steps(trainer, state, batch, 3)
    bare, looped, compiles = [], [], []
    for _ in range(ROUNDS):
        seconds, state = time_steps(trainer, state, batch, num_steps)
        bare.append(statistics.median(seconds))
        seconds, late = _loop_once(config)
        looped.append(statistics.median(seconds))
        compiles.append(late)
    tokens = resolve(config, jax.device_count()).tokens_per_step
    ratios = [b / s for b, s in zip(bare, looped, strict=True)]
    return {
        "bare step": f"{tokens / statistics.median(bare):,.0f} tokens/s",
        "real loop": f"{tokens / statistics.median(looped):,.0f} tokens/s",
        "loop / bare": f"{statistics.median(ratios):.1%} (rounds: {', '.join(f'{r:.1%}' for r in ratios)})",
        "compilations after the first update": str(max(compiles)),
    }


class _CountingRun(Run):
    """Notes how many programs were compiled by the time of each report."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.num_compiled, self.at_report = 0, list[int]()
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        self.num_compiled += "backend_compile" in event

    def report(self, step: int, metrics: Metrics, data_wait_s: float) -> None:
        self.at_report.append(self.num_compiled)
        super().report(step, metrics, data_wait_s)

    def evaluate(self, state: TrainState, step: int, max_batches: int | None) -> dict[str, float]:
        # the whole validation set, three times over, would take longer than what is measured
        return super().evaluate(state, step, 1)


def _loop_once(config: RunConfig) -> tuple[list[float], int]:
    """(seconds of each update, compilations once the loop had its first metrics) of a whole run."""
    data, display = prepare(config.data), make_display(10, io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        run = _CountingRun(config, resolve(config, jax.device_count()), data, Path(folder), display)
        with on_mesh(run.trainer.mesh, run.trainer.rules), StopRequest() as stop:
            train(run, stop)
        run.close()
        rows = latest_rows(Path(folder), "train")
    seconds = [row["perf/step_time_s"] for row in rows if "perf/step_time_s" in row]
    return seconds, run.at_report[-1] - run.at_report[0]
