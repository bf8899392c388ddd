# SPDX-License-Identifier: Apache-2.0
"""The loop: the only place with a clock, a writer and a `for`.

The host reads the metrics of update n after it has dispatched update n + 1, so the device never
waits for the host.

Legend: V vocabulary
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxlm.config import Resolved, RunConfig
from jaxlm.core.errors import NonFiniteError
from jaxlm.core.types import Batch, Metrics
from jaxlm.data.loader import BatchSource
from jaxlm.data.prepared import PreparedData
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.generate import Generator, Sampling
from jaxlm.sharding.feed import local_rows, to_global
from jaxlm.telemetry.display import Display
from jaxlm.telemetry.hardware import peak_flops
from jaxlm.telemetry.writer import JsonlWriter, Writer, latest_rows
from jaxlm.train.batch_probe import BatchProbe
from jaxlm.train.checkpoint import (
    Checkpointer,
    Identity,
    newest_whole,
    restore,
    restore_host,
)
from jaxlm.train.host_probe import host_probe
from jaxlm.train.reporter import Reporter
from jaxlm.train.run_dir import CHECKPOINTS, append_json
from jaxlm.train.setup import Trainer, build_trainer, compiling_step
from jaxlm.train.state import TrainState
from jaxlm.train.stop import StopRequest
from jaxlm.train.validate import validate


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How this process's part of a run ended."""

    status: str  # completed | preempted
    step: int
    final: dict[str, float] | None  # validation metrics; None unless completed
    wall_time_s: float
    tokens_per_s: float | None  # median over the updates


def train(run: "Run", stop: StopRequest) -> Outcome:
    """Trains from the newest checkpoint, or from scratch, to the end or until asked to stop.

    Raises NonFiniteError when an update was refused, CheckpointError when a save failed.
    """
    config, start_time = run.config.train, time.perf_counter()
    state, first = run.initial_state()
    run.display.start(first, config.num_steps)
    batches = run.batches(first, config.num_steps)
    step, pending, saved = first, None, first  # pending: metrics that the host has not read yet
    while step < config.num_steps and not stop.should_stop(step):
        wait_start = time.perf_counter()
        batch = next(batches)
        data_wait_s = time.perf_counter() - wait_start
        run.begin_profile(step + 1)
        state, metrics = run.trainer.step(state, batch)
        step += 1
        run.end_profile(step, metrics)
        if pending is not None:
            run.report(*pending)
        pending = (step, metrics, data_wait_s)

        is_last = step == config.num_steps
        evaluates = step % config.eval_every == 0 and not is_last
        samples = (
            config.sample_every is not None and step % config.sample_every == 0 and not is_last
        )
        saves = step % config.checkpoint_every == 0 and not is_last
        if evaluates or samples or saves:
            run.report(*pending)  # the state must be known to be sound
            pending = None
            if saves:
                run.save(step, state)
                saved = step
            if evaluates:
                run.evaluate(state, step, config.eval_batches)
            if samples:
                run.sample(state, step)
            run.reporter.paused()

    if pending is not None:
        run.report(*pending)
    if step > saved:
        run.save(step, state)
    final = None
    if step == config.num_steps:
        final = run.evaluate(state, step, None)
        run.sample(state, step)
    run.checkpoints.wait()
    speeds = run.reporter.step_times
    tokens_per_s = run.resolved.tokens_per_step / statistics.median(speeds) if speeds else None
    status = "preempted" if final is None else "completed"
    return Outcome(status, step, final, time.perf_counter() - start_time, tokens_per_s)


class Run:
    """What the loop holds on to, and what it does every so many updates."""

    def __init__(
        self,
        config: RunConfig,
        resolved: Resolved,
        data: PreparedData,
        run_dir: Path,
        display: Display,
        trainer: Trainer | None = None,
    ) -> None:
        """trainer: of a config that differs in nothing but seeds and the optimizer's scalars."""
        self.config, self.resolved = config, resolved
        self.run_dir, self.display = run_dir, display
        self.tokenizer = load_tokenizer(data.tokenizer_path, sha256=data.tokenizer_sha256)
        self.trainer = trainer or build_trainer(config, self.tokenizer.bytes_per_token_V)
        self.train_source = BatchSource(data, config.data, split="train")
        self.valid_source = BatchSource(data, config.data, split="valid")
        self.rows = local_rows(self.trainer.mesh, config.data.batch_size)
        self.generator = Generator(self.trainer.model, len(self.tokenizer.bytes_per_token_V))
        self.is_main = jax.process_index() == 0
        self.is_profiling = False
        self.identity = Identity(config.config_id, data.data_id)
        keep = config.train.keep_checkpoints
        self.checkpoints = Checkpointer(run_dir / CHECKPOINTS, keep, self.identity)
        self.writers: list[Writer] = [JsonlWriter(run_dir)] if self.is_main else []
        if config.train.tensorboard and self.is_main:
            from jaxlm.telemetry.tensorboard import TensorBoardWriter  # an extra

            self.writers.append(TensorBoardWriter(run_dir))
        device_peak, _ = peak_flops(jax.devices()[0], config.model.compute_dtype)
        peak = device_peak and device_peak * jax.device_count()
        self.reporter = Reporter(self.writers, display, resolved, peak, probe=self.trainer.probe)
        self.batch_probe = self._batch_probe() if self.trainer.probe else None
        self._looked_at: dict[int, dict[str, float]] = {}  # metrics of batches, by step
        self._kept = 0  # updates in the newest checkpoint; 0: there is none

    def initial_state(self) -> tuple[TrainState, int]:
        """The newest whole checkpoint, or fresh parameters; and how many updates it holds."""
        directory = self.run_dir / CHECKPOINTS
        step = newest_whole(directory, lambda text: self.reporter.event(0, "damaged", text))
        with compiling_step(self.trainer, self.config):
            if step is None:
                return self.trainer.fresh_state(self.config), 0
            return self.restored(step), step

    def restored(self, step: int) -> TrainState:
        """The state of a checkpoint; counting goes on from there."""
        directory = self.run_dir / CHECKPOINTS
        state = restore(directory, step, self.trainer.abstract_state, self.identity.data_id)
        rows = [row for row in latest_rows(self.run_dir, "train") if row["step"] == step]
        if self.batch_probe is not None:
            self.batch_probe.remember(restore_host(directory, step))
        self.reporter.resume(rows[-1]["data/tokens_seen"] if rows else 0)
        self.reporter.event(step, "resumed", f"from {directory}")
        self._kept = step
        return state

    def save(self, step: int, state: TrainState) -> None:
        """A checkpoint, in the background."""
        memory = None if self.batch_probe is None else self.batch_probe.memory()
        self.checkpoints.save(step, state, memory)
        self._kept = step

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Global arrays of batch(start), batch(start + 1), ...; read in the background."""
        source = self.train_source.iter_batches(start, stop, self.rows)
        for step, batch in enumerate(source, start=start + 1):
            if self.batch_probe is not None:
                self._looked_at[step] = self.batch_probe(batch)
            yield to_global(batch, self.trainer.mesh, self.config.data.batch_size, self.rows)

    def _batch_probe(self) -> BatchProbe:
        sources = [self.valid_source.valid_batches(c.name) for c in self.config.data.corpora]
        valid = itertools.chain.from_iterable(zip(*sources, strict=False))
        bytes_per_token = self.tokenizer.bytes_per_token_V
        return BatchProbe(valid, bytes_per_token, self.config.data.seq_len)

    def report(self, step: int, metrics: Metrics, data_wait_s: float) -> None:
        """Raises NonFiniteError when the update was refused."""
        values = jax.device_get(metrics)
        if self.trainer.probe is not None:
            values |= self._looked_at.pop(step, {}) | host_probe()
        self.reporter.train(step, values, self.train_source.epoch(step), data_wait_s)
        if not values["update/applied"]:
            self.reporter.event(step, "refused", "loss or gradient is not finite")
            whole = f"the checkpoint of update {self._kept} is whole"
            left = whole if self._kept else "there is no checkpoint yet"
            raise NonFiniteError(
                f"update {step} was refused: loss {values['train/loss_nats']}, gradient norm "
                f"{values['grad/norm_l2']}; {left}; lower OptimConfig.peak_lr "
                "or lengthen OptimConfig.warmup_steps"
            )

    def evaluate(self, state: TrainState, step: int, max_batches: int | None) -> dict[str, float]:
        params = self.trainer.eval_params(state)
        metrics = validate(self.trainer, params, self.valid_source, max_batches)
        self.reporter.eval(step, metrics)
        return metrics

    def sample(self, state: TrainState, step: int) -> None:
        """A continuation of each prompt, to samples.jsonl and the display."""
        params = self.trainer.eval_params(state)
        for i, prompt in enumerate(self.config.train.sample_prompts):
            rng = jax.random.fold_in(jax.random.key(self.config.train.seed), i)
            ids = [self.tokenizer.separator_id, *self.tokenizer.encode(prompt)]
            drawn = self.generator.stream(
                params, ids, self.config.train.sample_tokens, Sampling(temperature=0.8),
                rng, stop_id=self.tokenizer.separator_id,
            )  # fmt: skip
            text = self.tokenizer.decode(list(drawn))
            if self.is_main:
                row = {"step": step, "prompt": prompt, "text": text}
                append_json(self.run_dir / "samples.jsonl", row)
                self.display.sample(prompt, text)

    def close(self) -> None:
        try:
            self.checkpoints.close()
        finally:
            for writer in self.writers:
                writer.close()

    def begin_profile(self, step: int) -> None:
        """Starts the trace of the updates that TrainConfig.profile_steps names, before the first."""
        first, last = self.config.train.profile_steps or (1, 0)
        if not self.is_profiling and first <= step <= last:  # a run may resume in between
            jax.profiler.start_trace(str(self.run_dir / "profile"))
            self.is_profiling = True

    def end_profile(self, step: int, metrics: Metrics) -> None:
        """Writes the trace, once the last of them has been computed and not only dispatched."""
        _, last = self.config.train.profile_steps or (1, 0)
        if self.is_profiling and step == last:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self.is_profiling = False
            self.reporter.event(step, "profiled", str(self.run_dir / "profile"))
