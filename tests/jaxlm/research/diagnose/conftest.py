# SPDX-License-Identifier: Apache-2.0
"""A healthy run's telemetry, made of formulas, for faults to be written into."""

import math

import numpy as np
import pytest

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, TokenizerConfig
from jaxlm.model.config import ModelConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.train.config import TrainConfig

STEPS = 160
CONFIG = RunConfig(
    model=ModelConfig(vocab_size=512, num_layers=3, embed_dim=32, num_heads=2, ffn_dim=64),
    data=DataConfig(tokenizer=TokenizerConfig(vocab_size=512), seq_len=64, batch_size=8),
    optim=OptimConfig(peak_lr=1e-2, warmup_steps=16, schedule="linear"),
    train=TrainConfig(num_steps=STEPS),
)
PARTS = ("layer_0", "layer_1", "layer_2", "embed", "attention", "mlp")


def healthy_rows() -> list[dict]:
    """One row per update with a smooth loss, steady norms and an honest clock; probes every 5th."""
    rng = np.random.default_rng(0)
    rows = []
    for step in range(1, STEPS + 1):
        scale = min(step / 16, (STEPS - step) / (STEPS - 16)) if step > 16 else step / 16
        loss = 4.5 + 1.7 * math.exp(-step / 40) + 0.03 * rng.standard_normal()
        row = {
            "kind": "train", "step": step, "time": 1e9 + step,
            "train/loss_nats": loss, "train/z_loss": 38.9 + 0.5 * rng.standard_normal(),
            "grad/norm_l2": 0.4 + 0.03 * rng.standard_normal(),
            "param/norm_l2": 28.0, "update/ratio_rms": 0.02 * scale + 1e-5, "update/applied": 1.0,
            "optim/lr": 1e-2 * scale, "train/tokens": 512.0, "data/epoch": step / 1000,
            "data/batch_id": float(step), "data/seen_frac": 0.0, "data/valid_frac": 0.0,
            "data/shifted_frac": 0.0, "data/mask_error_frac": 0.0,
            "data/unigram_nats": 5.1 + 0.07 * rng.standard_normal(),
            "data/bytes_per_token": 2.0 + 0.05 * rng.standard_normal(),
            "perf/step_time_s": 0.1 * math.exp(0.03 * rng.standard_normal()),
            "perf/data_wait_s": 0.0002, "perf/compiles": 3.0, "perf/host_memory_bytes": 7e8,
        }  # fmt: skip
        if step % 5 == 1:
            row |= _probes(step, scale, rng)
        rows.append(row)
        if step % 20 == 0:
            rows.append({
                "kind": "eval", "step": step, "eval/loss_nats": loss + 0.02, "eval/tokens": 1000.0,
                "eval/bytes": 2000.0, "eval/bpb": (loss + 0.02) / (2 * math.log(2)),
            })  # fmt: skip
    return rows


def _probes(step: int, scale: float, rng: np.random.Generator) -> dict:
    row: dict = {"param/bf16_frac": 0.0, "update/below_bf16_frac": 0.4}
    for i, part in enumerate(PARTS):
        row[f"grad/norm_l2@{part}"] = 0.2 + 0.02 * rng.standard_normal()
        row[f"update/ratio_rms@{part}"] = (0.01 + 0.001 * i) * scale + 1e-6
    return row | {f"attention/logit_max@layer_{i}": 4.0 + step / 40 for i in range(3)}


@pytest.fixture
def rows():
    return healthy_rows()
