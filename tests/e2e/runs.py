# SPDX-License-Identifier: Apache-2.0
"""Real `jaxlm train` processes on a tiny config: start, watch, stop, and read what they left."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxlm.telemetry.writer import read_rows
from jaxlm.train.checkpoint import list_checkpoints, restore
from jaxlm.train.restore import load_config
from jaxlm.train.run_dir import CHECKPOINTS, read_json
from jaxlm.train.setup import build_trainer

ROOT = Path(__file__).parents[2]
NUM_STEPS = 60
PREEMPTED = 75

# checkpoints and evaluations fall together only at steps that 7 and 10 both divide; the weights
# of the corpora change twice; short rows, so that documents share them
CONFIG = """
ModelConfig.vocab_size = 512
ModelConfig.num_layers = 2
ModelConfig.embed_dim = 32
ModelConfig.num_heads = 4
ModelConfig.num_kv_heads = 2
ModelConfig.ffn_dim = 64
DataConfig.corpora = [@a/CorpusConfig(), @b/CorpusConfig()]
a/CorpusConfig.name = "a"
a/CorpusConfig.source = "{corpora}/a"
b/CorpusConfig.name = "b"
b/CorpusConfig.source = "{corpora}/b"
DataConfig.weight_schedule = ((0, (0.7, 0.3)), (15, (0.2, 0.8)), (40, (0.5, 0.5)))
DataConfig.cache_dir = "{corpora}/cache"
DataConfig.seq_len = 32
DataConfig.batch_size = 8
DataConfig.valid_frac = 0.2
TokenizerConfig.vocab_size = 512
OptimConfig.peak_lr = 1e-2
OptimConfig.warmup_steps = 5
TrainConfig.num_steps = {num_steps}
TrainConfig.eval_every = 10
TrainConfig.eval_batches = 2
TrainConfig.checkpoint_every = 7
TrainConfig.sample_prompts = ("la ",)
TrainConfig.sample_tokens = 4
"""


def write_config(folder: Path) -> Path:
    """Two corpora of short and long .txt documents, and a config that mixes them."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(1, 9))) for _ in range(500)]
    for name, count in (("a", 80), ("b", 50)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            text = " ".join(rng.choices(words, k=rng.choice([3, 10, 60, 200])))
            (folder / name / f"{i}.txt").write_text(text)
    path = folder / "tiny.gin"
    path.write_text(CONFIG.format(corpora=folder, num_steps=NUM_STEPS))
    return path


@dataclasses.dataclass(frozen=True)
class Job:
    """One command: always the same words, as a person or a scheduler would repeat them."""

    config: Path
    run_dir: Path
    devices: int = 1  # simulated, of each process
    processes: int = 1
    overrides: tuple[str, ...] = ()

    def start(self) -> "subprocess.Popen[str]":
        words = ["train", str(self.config), "--run", str(self.run_dir)]
        words += ["--cpu-devices", str(self.devices)]
        for override in self.overrides:
            words += ["--set", override]
        local = [str(ROOT / "scripts/launch_local.py"), str(self.processes)]
        program = ["-m", "jaxlm.cli.main"] if self.processes == 1 else local
        return subprocess.Popen(
            [sys.executable, *program, *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, timeout: float = 120) -> tuple[int, str]:
        """(exit code, what it said on stderr)."""
        return finish(self.start(), timeout)

    def stop_after(self, step: int, sig: int = signal.SIGTERM) -> tuple[int, str]:
        """Sends a signal once the row of `step` stands in the telemetry."""
        process = self.start()
        wait_until(lambda: has_step(self.run_dir, step), process)
        process.send_signal(sig)
        return finish(process)


def finish(process: "subprocess.Popen[str]", timeout: float = 120) -> tuple[int, str]:
    try:
        _, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, err


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]", limit: float = 120) -> bool:
    """Until the condition holds (True) or the process has ended (False)."""
    end = time.monotonic() + limit
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > end:
            raise TimeoutError("nothing happened")
        time.sleep(0.002)
    return True


def has_step(run_dir: Path, step: int) -> bool:
    return any(row["step"] >= step for row in read_rows(run_dir, "train"))


def curves(run_dir: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(kind, step) -> what was measured, without times.

    Every row counts, not only the last of its step: what a resumed run repeats must repeat.
    JSON holds the shortest text that reads back as the same float, so equal rows are equal bits.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in read_rows(run_dir):
        if row["kind"] == "event":
            continue
        values = {name: value for name, value in row.items() if name != "time" and not name.startswith("perf/")}
        before = found.setdefault((row["kind"], row["step"]), values)
        assert before == values, f"two rows of one step differ: {before} {values}"
    return found


def losses(run_dir: Path) -> list[float]:
    rows = curves(run_dir)
    return [rows["train", step]["train/loss_nats"] for step in range(1, NUM_STEPS + 1) if ("train", step) in rows]


def summary(run_dir: Path) -> dict[str, Any]:
    return read_json(run_dir / "summary.json")


def final_state(run_dir: Path, step: int | None = None) -> list[Any]:
    """Leaves of the newest checkpoint (or that of `step`), read on one device of this process."""
    import numpy as np

    config = load_config(run_dir)
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "model"), devices=jax.devices()[:1])
    trainer = build_trainer(config, np.ones(512, np.int32), mesh)
    folder = run_dir / CHECKPOINTS
    step = list_checkpoints(folder)[-1] if step is None else step
    return jax.tree.leaves(jax.device_get(restore(folder, step, trainer.abstract_state)))
