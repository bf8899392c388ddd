# SPDX-License-Identifier: Apache-2.0
"""The bare jitted step: tokens per second, share of the machine's own limit, and what takes the rest."""

import collections
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jaxlm.config import RunConfig, resolve
from jaxlm.core.types import Batch
from jaxlm.sharding.feed import local_rows, to_global
from jaxlm.telemetry.hardware import peak_flops
from jaxlm.train.setup import Trainer, build_trainer, compiling_step, on_mesh
from jaxlm.train.state import TrainState

# families of compiled operations, by the first word that their name holds
FAMILIES = {
    "matrix products": ("ynn", "dot", "gemm", "custom-call", "convolution"),
    "softmax and loss": ("exponential", "log", "reduce"),
    "copies and layout": ("copy", "transpose", "bitcast", "concatenate", "slice", "broadcast"),
    "collectives": ("all-", "collective", "permute"),
}
CONTAINERS = ("Executor", "Await", "while", "cond", "call", "ThreadPool", "end:", "wait", "Wait")


def random_batch(config: RunConfig) -> dict[str, np.ndarray]:
    """One full row of random tokens after another: the shapes of a real batch, no padding."""
    B, T = config.data.batch_size, config.data.seq_len
    tokens = np.random.default_rng(0).integers(
        0, config.data.tokenizer.vocab_size, (B, T + 1), np.int32
    )
    return {
        "tokens": np.ascontiguousarray(tokens[:, :-1]),
        "targets": np.ascontiguousarray(tokens[:, 1:]),
        "segment_ids": np.ones((B, T), np.int32),
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "weights": np.ones((B, T), np.float32),
    }


def set_up(config: RunConfig) -> tuple[Trainer, TrainState, Batch]:
    """A trainer with a fresh state and one placed batch."""
    trainer = build_trainer(config, np.ones(config.data.tokenizer.vocab_size, np.int32))
    rows = local_rows(trainer.mesh, config.data.batch_size)
    local = {name: x[rows] for name, x in random_batch(config).items()}
    with on_mesh(trainer.mesh, trainer.rules), compiling_step(trainer, config):
        state = trainer.init(jax.random.key(0))
    return trainer, state, to_global(local, trainer.mesh, config.data.batch_size, rows)


def time_steps(
    trainer: Trainer, state: TrainState, batch: Batch, num_steps: int
) -> tuple[list[float], TrainState]:
    """Seconds of each update; the host reads metrics one step late, as the loop does."""
    seconds, pending = [], None
    with on_mesh(trainer.mesh, trainer.rules):
        last = time.perf_counter()
        for _ in range(num_steps):
            state, metrics = trainer.step(state, batch)
            if pending is not None:
                jax.device_get(pending)
                now = time.perf_counter()
                seconds.append(now - last)
                last = now
            pending = metrics
        jax.device_get(pending)
    return seconds, state


def bench_step(config: RunConfig, num_steps: int) -> dict[str, str]:
    """Name -> text of a table; the limit is measured in the same process, before and after."""
    resolved = resolve(config, jax.device_count())
    trainer, state, batch = set_up(config)
    _, state = time_steps(trainer, state, batch, 3)  # compiles, warms up
    device, dtype = jax.devices()[0], config.model.compute_dtype
    limits = [peak_flops(device, dtype)]
    seconds, state = time_steps(trainer, state, batch, num_steps)
    limits.append(peak_flops(device, dtype))
    step_s = statistics.median(seconds)
    flops_per_s = resolved.train_flops_per_token * resolved.tokens_per_step / step_s
    table = {
        "tokens/s": f"{resolved.tokens_per_step / step_s:,.0f} (median of {len(seconds)} updates)",
        "step time": f"{step_s * 1e3:.1f} ms (fastest {min(seconds) * 1e3:.1f} ms)",
        "model FLOP/s": f"{flops_per_s / 1e9:,.1f} G",
    }
    if limits[0][0] is not None:
        limit = max(flops for flops, _ in limits if flops) * jax.device_count()
        table["limit"] = f"{limit / 1e9:,.1f} GFLOP/s, {limits[0][1]}"
        table["share of limit"] = f"{flops_per_s / limit:.1%}"
    for family, share in time_by_family(trainer, state, batch).items():
        table[f"time in {family}"] = f"{share:.1%}"
    return table


def time_by_family(
    trainer: Trainer, state: TrainState, batch: Batch, num_steps: int = 3
) -> dict[str, float]:
    """Share of the traced operations' time in each family, largest first; empty without a trace."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            time_steps(trainer, state, batch, num_steps)
        totals: collections.Counter[str] = collections.Counter()
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines:
                    if "XLA" in line.name or "Stream" in line.name:
                        for event in line.events:
                            totals[_family(event.name)] += event.duration_ns
    del totals["container"]
    whole = sum(totals.values())
    return {family: ns / whole for family, ns in totals.most_common()}


def _family(name: str) -> str:
    if any(word in name for word in CONTAINERS):
        return "container"
    for family, words in FAMILIES.items():
        if any(word in name for word in words):
            return family
    return "other elementwise"
