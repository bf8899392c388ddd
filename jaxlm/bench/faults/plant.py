# SPDX-License-Identifier: Apache-2.0
"""What one planted run changes: scalars, knobs, batches, evaluation, clock, memory, compilations.

Updates are numbered from 1, as telemetry rows are.
"""

import dataclasses
import mmap
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxlm.bench.faults.step import Knobs, neutral
from jaxlm.config import RunConfig
from jaxlm.data.loader import BatchSource
from jaxlm.data.packing import Batch
from jaxlm.evaluate import EvalSums

STEP_S = 0.1  # of the simulated clock


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a plant may draw from."""

    config: RunConfig
    source: BatchSource  # the true batches
    valid: list[Batch]
    rng: np.random.Generator


def _same(scene: Scene, step: int, batch: Batch) -> Batch:
    return batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plant:
    """Neutral by default: a healthy run."""

    cause: str | None = None  # what a diagnosis should name; None: nothing is wrong
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)  # "optim.peak_lr" -> value
    corpus: str = "base"  # a key of world.CORPORA
    model: str = "base"  # a key of world.MODELS
    lr: Callable[[int], float] = lambda step: 1.0  # factor of what the config asks for
    z_loss: float = 0.0
    knob: Callable[[int], dict[str, float]] = lambda step: {}
    batch: Callable[[Scene, int, Batch], Batch] = _same
    judged: Callable[[EvalSums], EvalSums] = lambda sums: sums
    slower: Callable[[int], float] = lambda step: 1.0  # factor of the step's time
    waits: Callable[[int], float] = lambda step: 0.0  # for data, in steps' times
    noise: float = 0.03  # of the clock: sigma of the logarithm
    memory_mib: float = 0.0  # that each update keeps
    compiles: Callable[[int], int] = lambda step: 0
    forgets_at: tuple[int, ...] = ()  # updates before which the optimizer's state is lost
    resumed_at: tuple[int, ...] = ()
    steps_before: int = 0  # of an earlier run whose parameters this one begins with

    def knobs(self, scene: Scene, step: int) -> tuple[float, Knobs, float]:
        """(factor of the learning rate, knobs, weight of the z-loss) of an update."""
        knobs = neutral() | {f"fault/{k}": np.float32(v) for k, v in self.knob(step).items()}
        return self.lr(step), knobs, self.z_loss

    def clock(self, scene: Scene) -> "Clock":
        rng, steps = scene.rng, range(1, scene.config.train.num_steps + 1)
        jitter = np.exp(self.noise * rng.standard_normal(len(steps)))
        jitter *= np.where(
            rng.random(len(steps)) < 0.01, 1.5, 1.0
        )  # what any machine does at times
        waits = [STEP_S * (self.waits(s) + 0.002) * j for s, j in zip(steps, jitter, strict=True)]
        compiling = [5.0 * STEP_S * self.compiles(s) for s in steps]
        seconds = [
            STEP_S * self.slower(s) * j + w + c
            for s, j, w, c in zip(steps, jitter, waits, compiling, strict=True)
        ]
        return Clock(seconds, dict(zip(steps, waits, strict=True)))

    def memory(self, step: int) -> list[mmap.mmap]:
        """Memory that nobody will give back before the run ends, touched so that it counts."""
        size = int(self.memory_mib * 2**20)
        if not size:
            return []
        ballast = mmap.mmap(-1, size)
        ballast.write(b"x" * size)
        return [ballast]


class Clock:
    """Tells the simulated time at the end of each update."""

    def __init__(self, seconds: Iterable[float], waits: dict[int, float]) -> None:
        self._seconds, self.waits = iter(seconds), waits
        self._now = 0.0

    def read(self) -> float:
        self._now += next(self._seconds, STEP_S)
        return self._now


class Recompiler:
    """Compiles a program that was never seen before, as often as asked."""

    def compile(self, count: int) -> None:
        for _ in range(count):
            constant = float(np.random.default_rng().random())
            jax.jit(lambda x, c=constant: x + c)(0.0).block_until_ready()
