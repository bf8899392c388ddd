# SPDX-License-Identifier: Apache-2.0
"""Many short runs in one process, one after another: validation losses, and nothing on disk.

Runs that differ in seeds and the optimizer's scalars alone share compiled functions (jobs.py); what
a run then costs is its updates.  On one device; its numbers depend on config, data, code, versions,
kind of CPU and, where one is set, the number of threads (`pin`).

There is no checkpoint and so no evaluator: for a table that others train again, not for verdicts.
"""

import dataclasses
import functools
import math
import os
from typing import Any

import jax

from jaxlm.config import RunConfig
from jaxlm.core.canonical import content_id, file_sha256
from jaxlm.data.config import DataConfig
from jaxlm.data.loader import BatchSource
from jaxlm.data.packing import Batch
from jaxlm.data.prepare import prepare
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.evaluate import evaluate
from jaxlm.research import fingerprint
from jaxlm.research.jobs import program_id
from jaxlm.sharding.mesh import make_mesh
from jaxlm.train.setup import build_trainer, on_mesh

METRIC = "eval/loss_nats"
Curve = list[tuple[float, float]]  # (fraction of the updates, nats per token), the last at 1
OFTEN = {"xla_backend_optimization_level": 1}  # the default's numbers, compiled in two thirds
ONCE = {"xla_backend_optimization_level": 0}
NUM_KEPT = 64  # runs whose batches stay in memory


@functools.lru_cache(NUM_KEPT)
def _batches(config: DataConfig, num_steps: int) -> list[Batch]:
    """The first batches of the training data; runs of one seed share them."""
    source = BatchSource(prepare(config), config, split="train")
    return [source.batch(step) for step in range(num_steps)]


def pin() -> None:
    """One core and one thread, so that sums are split alike everywhere; before jax computes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"


def code() -> str:
    """sha256 over what computes a curve: the training code, its libraries, and this file."""
    return content_id({"code": fingerprint.training_code(), "runs": file_sha256(__file__)})


class Program:
    """The compiled functions of a config, for any seed and any of the optimizer's scalars."""

    def __init__(self, config: RunConfig) -> None:
        data = prepare(config.data)
        tokenizer = load_tokenizer(data.tokenizer_path, sha256=data.tokenizer_sha256)
        self.id = program_id(config)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        self.trainer = build_trainer(config, tokenizer.bytes_per_token_V, mesh)
        source, limit = BatchSource(data, config.data, split="valid"), config.train.eval_batches
        names = [corpus.name for corpus in config.data.corpora]
        self.valid: list[Any] = [
            batch for name in names for batch in source.valid_batches(name, limit=limit)
        ]
        init: Any = self.trainer.init  # jitted, all three: they can be compiled ahead
        step: Any = self.trainer.step
        judge: Any = self.trainer.eval_step
        key = jax.random.key(0)
        with on_mesh(mesh, self.trainer.rules):
            self._init = init.lower(key).compile(compiler_options=ONCE)
            state = self._init(key)
            self._step = step.lower(state, self.valid[0]).compile(compiler_options=OFTEN)
            params = self.trainer.eval_params(state)
            self._judge = judge.lower(params, self.valid[0]).compile(compiler_options=OFTEN)

    def run(self, config: RunConfig) -> Curve:
        """Validation every TrainConfig.eval_every updates and at the end, on eval_batches each.

        From a refused update on the losses are nan: the run did not complete.
        Raises ValueError for a config of another program.
        """
        if program_id(config) != self.id:
            raise ValueError("the config differs in more than seeds and the optimizer's scalars")
        num_steps, curve, applied = config.train.num_steps, Curve(), []
        trainer = dataclasses.replace(self.trainer, init=self._init)
        with on_mesh(trainer.mesh, trainer.rules):
            state = trainer.fresh_state(config)
            for step, batch in enumerate(_batches(config.data, num_steps), start=1):
                state, metrics = self._step(state, batch)
                applied.append(metrics["update/applied"])
                if step % config.train.eval_every == 0 or step == num_steps:
                    totals = evaluate(self._judge, trainer.eval_params(state), self.valid)
                    is_sound = all(jax.device_get(applied)) and math.isfinite(totals.nats)
                    loss = totals.metrics()[METRIC] if is_sound else math.nan
                    curve.append((round(step / num_steps, 4), loss))
        return curve
