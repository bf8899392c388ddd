# SPDX-License-Identifier: Apache-2.0
"""Real `jaxlm train` processes on a tiny config: start, watch, stop, and read what they left."""

import contextlib
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
import numpy as np

from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.telemetry.writer import read_rows
from jaxlm.train.checkpoint import list_checkpoints, restore
from jaxlm.train.run_dir import CHECKPOINTS, load_config, read_json
from jaxlm.train.setup import build_trainer
from jaxlm.train.state import TrainState

ROOT = Path(__file__).parents[2]
NUM_STEPS = 60
VOCAB_SIZE = 512
STOPPED = 75

# Checkpoints (every 7) and evaluations (every 10) fall together at update 70 at the earliest; the
# corpora's weights change twice; documents are shorter and longer than rows.
CONFIG = f"""
ModelConfig.vocab_size = {VOCAB_SIZE}
ModelConfig.num_layers = 2
ModelConfig.embed_dim = 32
ModelConfig.num_heads = 4
ModelConfig.num_kv_heads = 2
ModelConfig.ffn_dim = 64
DataConfig.corpora = [@a/CorpusConfig(), @b/CorpusConfig()]
a/CorpusConfig.name = "a"
a/CorpusConfig.source = "FOLDER/a"
b/CorpusConfig.name = "b"
b/CorpusConfig.source = "FOLDER/b"
DataConfig.weight_schedule = ((0, (0.7, 0.3)), (15, (0.2, 0.8)), (40, (0.5, 0.5)))
DataConfig.cache_dir = "FOLDER/cache"
DataConfig.seq_len = 32
DataConfig.batch_size = 8
DataConfig.valid_frac = 0.2
TokenizerConfig.vocab_size = {VOCAB_SIZE}
OptimConfig.peak_lr = 1e-2
OptimConfig.warmup_steps = 5
TrainConfig.num_steps = {NUM_STEPS}
TrainConfig.eval_every = 10
TrainConfig.eval_batches = 2
TrainConfig.checkpoint_every = 7
TrainConfig.sample_prompts = ("la ",)
TrainConfig.sample_tokens = 4
"""


def write_config(folder: Path) -> Path:
    """Two corpora of .txt documents, and a config that mixes them."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(1, 9))) for _ in range(500)]
    for name, count in (("a", 80), ("b", 50)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            text = " ".join(rng.choices(words, k=rng.choice([3, 10, 60, 200])))
            (folder / name / f"{i}.txt").write_text(text)
    path = folder / "tiny.gin"
    path.write_text(CONFIG.replace("FOLDER", str(folder)))
    return path


@dataclasses.dataclass(frozen=True)
class Job:
    """One command: always the same words, as a person or a scheduler would repeat them."""

    config: Path
    run_dir: Path
    devices: int = 1  # simulated, of each process
    processes: int = 1
    overrides: tuple[str, ...] = ()
    limit_s: float = 120  # for what a test waits for

    def start(self, **env: str) -> "subprocess.Popen[str]":
        words = ["train", str(self.config), "--run", str(self.run_dir)]
        words += ["--cpu-devices", str(self.devices)]
        for override in self.overrides:
            words += ["--set", override]
        local = [str(ROOT / "scripts/launch_local.py"), str(self.processes)]
        program = ["-m", "jaxlm.cli.main"] if self.processes == 1 else local
        return subprocess.Popen(
            [sys.executable, *program, *words],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self) -> tuple[int, str]:
        """(exit code, what it said on stderr)."""
        return finish(self.start(), self.limit_s)

    def stop(self, step: int, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Runs until the row of `step` stands in the telemetry, then sends a signal."""
        process = self.start()
        wait_for(lambda: last_step(self.run_dir) >= step, process, self.limit_s)
        process.send_signal(number)
        return finish(process, self.limit_s)


def finish(process: "subprocess.Popen[str]", limit_s: float = 120) -> tuple[int, str]:
    """(exit code, stderr).  Raises TimeoutExpired, and kills it, when it does not end."""
    try:
        _, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, err


def wait_for(
    condition: Callable[[], bool], process: "subprocess.Popen[str]", limit_s: float = 120
) -> bool:
    """Until the condition holds (True) or the process has ended (False)."""
    end = time.monotonic() + limit_s
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError("nothing happened")
        time.sleep(0.005)
    return True


def last_step(run_dir: Path) -> int:
    """The highest step that the telemetry holds; 0 without any."""
    return max((row["step"] for row in read_rows(run_dir, "train")), default=0)


def processes_of(run_dir: Path, *words: str) -> list[int]:
    """Ids of the living processes that were started for a run with these words, one after another."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            command = "\0" + path.read_text()
            if f"\0{run_dir}\0" in command and "\0".join(["", *words, ""]) in command:
                found.append(int(path.parent.name))
    return found


def curves(run_dir: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(kind, step) -> what was measured, without times.

    Every row counts, not only the last of its step: what a resumed run does again must come out
    the same.  JSON holds a text that reads back as the same float: equal rows are equal bits.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in read_rows(run_dir):
        if row["kind"] != "event":
            values = {k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")}
            before = found.setdefault((row["kind"], row["step"]), values)
            assert before == values, "a step that was done again came out otherwise"
    return found


def column(run_dir: Path, name: str) -> np.ndarray:
    """One metric of all updates, in order."""
    rows = curves(run_dir)
    steps = sorted(step for kind, step in rows if kind == "train")
    assert steps == list(range(1, len(steps) + 1))
    return np.array([rows["train", step][name] for step in steps])


def status(run_dir: Path) -> str | None:
    """What summary.json says; None without one."""
    return (read_json(run_dir / "summary.json") or {}).get("status")


def state_of(run_dir: Path, folder: Path | None = None, **mesh: int) -> TrainState:
    """A run's newest checkpoint, or that of another folder, on a mesh: by default of one device."""
    sizes = MeshConfig(**({"data": 1} | mesh))
    num_devices = sizes.data * sizes.fsdp * sizes.model
    folder = folder or run_dir / CHECKPOINTS
    trainer = build_trainer(
        load_config(run_dir),
        np.ones(VOCAB_SIZE, np.int32),
        make_mesh(sizes, jax.devices()[:num_devices]),
    )
    return restore(folder, list_checkpoints(folder)[-1], trainer.abstract_state)


def assert_same_bits(got: TrainState, want: TrainState) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_same_run(run_dir: Path, whole: Path) -> None:
    """Every measured number and the whole final state, bit for bit; and nothing is left over."""
    got, want = curves(run_dir), curves(whole)
    assert got.keys() == want.keys()
    for key, row in want.items():
        assert got[key] == row
    assert_same_bits(state_of(run_dir), state_of(whole))
    assert (run_dir / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert status(run_dir) == "completed"
    assert not processes_of(run_dir)
    names = [sorted(p.name for p in (d / CHECKPOINTS).iterdir()) for d in (run_dir, whole)]
    assert names[0] == names[1], "something is left of a save that was cut off"
    assert not list(run_dir.glob(".*.tmp"))
