# SPDX-License-Identifier: Apache-2.0
"""One planted run: the product's loop, reporter and writer around a step, batches and a clock with faults.

The clock is simulated (plant.Clock), as another machine's noise would else be part of every run;
memory and compilations are real.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.bench.faults.plant import Plant, Recompiler, Scene
from jaxlm.bench.faults.step import scalars_of
from jaxlm.config import RunConfig, resolve
from jaxlm.core.errors import NonFiniteError
from jaxlm.core.types import Batch, Metrics
from jaxlm.data import packing
from jaxlm.data.loader import BatchSource
from jaxlm.data.prepared import PreparedData
from jaxlm.evaluate import EvalSums
from jaxlm.telemetry.display import Display, PlainDisplay
from jaxlm.telemetry.writer import FILE_NAME, Row
from jaxlm.train.checkpoint import Checkpointer
from jaxlm.train.loop import Run, train
from jaxlm.train.reporter import Reporter
from jaxlm.train.setup import Trainer, on_mesh
from jaxlm.train.state import TrainState


def planted_rows(
    plant: Plant, config: RunConfig, data: PreparedData, trainer: Trainer, seed: int
) -> list[Row]:
    """The telemetry of one run, as the product wrote it."""
    with tempfile.TemporaryDirectory() as folder, open("/dev/null", "w", encoding="utf-8") as null:
        run = PlantedRun(plant, config, data, Path(folder), PlainDisplay(null), trainer, seed)
        try:
            with on_mesh(trainer.mesh):
                train(run, _Never())  # type: ignore[arg-type]
        except NonFiniteError:
            pass  # its telemetry says so
        finally:
            run.close()
        lines = (Path(folder) / FILE_NAME).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class PlantedRun(Run):
    """Everything as in the product but for what the plant changes."""

    def __init__(
        self,
        plant: Plant,
        config: RunConfig,
        data: PreparedData,
        run_dir: Path,
        display: Display,
        trainer: Trainer,
        seed: int,
    ) -> None:
        super().__init__(config, resolve(config, 1), data, run_dir, display, trainer)
        rng = np.random.default_rng([seed, 77])
        self.plant = plant
        self.scene = Scene(config, self.train_source, list(self._valid()), rng)
        self.train_source = _Planted(self.train_source, plant, self.scene)  # type: ignore[assignment]
        self.checkpoints.close()
        self.checkpoints = _NoCheckpoints()
        self.step = _Stepper(trainer, plant, self.scene)
        self.trainer = _replaced(trainer, self.step, plant)
        times = plant.clock(self.scene)
        self._waits = times.waits
        self.reporter = Reporter(
            self.writers, display, self.resolved, None, clock=times.read, probe=trainer.probe
        )
        self._ballast: list[Any] = []
        self._recompiler = Recompiler()

    def _valid(self) -> Iterator[packing.Batch]:
        for corpus in self.config.data.corpora:
            yield from self.valid_source.valid_batches(corpus.name)

    def initial_state(self) -> tuple[TrainState, int]:
        self._begin()
        state = self.trainer.init(jax.random.key(self.config.train.seed))
        state = state._replace(hparams=jax.device_put(scalars_of(self.config, self.step.knobs)))
        for step in range(
            self.plant.steps_before
        ):  # of an earlier run, whose end this one begins at
            batch = jax.device_put(self.scene.source.batch(step))
            state, _ = self.step.trainer.step(state, batch)
        if self.plant.steps_before:
            fresh = self.trainer.init(jax.random.key(self.config.train.seed))
            state = fresh._replace(params=state.params, hparams=state.hparams)
        return state, 0

    def _begin(self) -> None:
        for step in self.plant.resumed_at:
            self.reporter.event(step, "resumed", "from a checkpoint")

    def report(self, step: int, metrics: Metrics, data_wait_s: float) -> None:
        self._ballast += self.plant.memory(step)
        self._recompiler.compile(self.plant.compiles(step))
        super().report(step, metrics, self._waits[step])


class _Planted:
    """Batches of the true source, changed by the plant."""

    def __init__(self, source: BatchSource, plant: Plant, scene: Scene) -> None:
        self._source, self._plant, self._scene = source, plant, scene

    def epoch(self, step: int) -> float:
        return self._source.epoch(step)

    def iter_batches(self, start: int, stop: int, rows: slice) -> Iterator[packing.Batch]:
        for step in range(start, stop):
            yield self._plant.batch(self._scene, step + 1, self._source.batch(step, rows))


class _Stepper:
    """The trainer's step, with the plant's scalars and knobs set before each update."""

    def __init__(self, trainer: Trainer, plant: Plant, scene: Scene) -> None:
        self.trainer, self._plant, self._scene = trainer, plant, scene
        self.knobs = plant.knobs(scene, 1)[1]
        self._done = 0
        self._last: Any = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        self._done += 1
        lr_factor, knobs, z_loss = self._plant.knobs(self._scene, self._done)
        setting = (lr_factor, z_loss, *knobs.items())
        if setting != self._last:
            scalars: dict[str, Any] = scalars_of(self._scene.config, knobs)
            scalars["peak_lr"] = np.float32(scalars["peak_lr"] * lr_factor)
            scalars["z_loss"] = np.array([z_loss, *scalars["z_loss"][1:]], np.float32)
            state = state._replace(hparams=jax.device_put(scalars))
            self._last = setting
        if self._done - 1 in self._plant.forgets_at:
            state = state._replace(opt_state=_FORGET(state.opt_state))
        return self.trainer.step(state, batch)


_FORGET = jax.jit(lambda state: jax.tree.map(jax.numpy.zeros_like, state))


def _replaced(trainer: Trainer, step: _Stepper, plant: Plant) -> Trainer:
    def eval_step(params: Any, batch: Batch) -> EvalSums:
        return plant.judged(trainer.eval_step(params, batch))

    return dataclasses.replace(trainer, step=step, eval_step=eval_step)


class _Never:
    def should_stop(self, step: int) -> bool:
        return False


class _NoCheckpoints(Checkpointer):
    """The suite never goes back to a checkpoint: it plants what a bad one would do."""

    def __init__(self) -> None: ...

    def save(
        self, step: int, state: TrainState, host: Mapping[str, np.ndarray] | None = None
    ) -> None: ...

    def wait(self) -> None: ...

    def close(self) -> None: ...
