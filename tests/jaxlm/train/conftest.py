# SPDX-License-Identifier: Apache-2.0
"""A model small enough to compile in a second, and random packed batches for it."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, TokenizerConfig
from jaxlm.model.config import ModelConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.train.config import TrainConfig
from jaxlm.train.setup import build_trainer

CONFIG = RunConfig(
    model=ModelConfig(
        vocab_size=320, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64
    ),
    data=DataConfig(tokenizer=TokenizerConfig(vocab_size=320), seq_len=24, batch_size=16),
    optim=OptimConfig(peak_lr=3e-3, warmup_steps=2, z_loss=1e-4),
    train=TrainConfig(num_steps=10, probe_every=None),  # less to compile; test_probes.py looks
)


def changed(section: str, **fields):
    return dataclasses.replace(
        CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **fields)}
    )


@pytest.fixture(scope="session")
def make_trainer():
    """(config, mesh sizes) -> Trainer on as many of the simulated devices as the mesh needs."""

    @functools.cache
    def make(config=CONFIG, data=1, **sizes):
        num_devices = math.prod([data, *sizes.values()])
        mesh = make_mesh(MeshConfig(data=data, **sizes), jax.devices()[:num_devices])
        return build_trainer(config, np.ones(320, np.int32), mesh)

    return make


@pytest.fixture(scope="session")
def random_batch():
    """step -> packed rows with two segments and a padded tail, of unequal lengths."""

    def batch(step: int, rows: int = 16, seq_len: int = 24):
        rng = np.random.default_rng(step)
        tokens = rng.integers(0, 320, (rows, seq_len + 1)).astype(np.int32)
        cut = rng.integers(1, seq_len - 4, (rows, 1))
        end = rng.integers(seq_len - 4, seq_len + 1, (rows, 1))
        p = np.arange(seq_len)[None, :]
        ids = np.where(p >= end, 0, np.where(p < cut, 1, 2)).astype(np.int32)
        positions = np.where(p < cut, p, p - cut).astype(np.int32) * (ids > 0)
        return {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "segment_ids": ids,
            "positions": positions.astype(np.int32),
            "weights": (ids > 0).astype(np.float32),
        }

    return batch
