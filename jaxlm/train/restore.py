# SPDX-License-Identifier: Apache-2.0
"""A trained run, back in memory: what `eval`, `generate` and notebooks begin with."""

import dataclasses
from pathlib import Path

import jax

from jaxlm.config import RunConfig, resolve
from jaxlm.core.errors import RunError
from jaxlm.core.types import Params
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.sharding.config import MeshConfig
from jaxlm.train.checkpoint import newest_whole, restore
from jaxlm.train.run_dir import CHECKPOINTS, TOKENIZER, load_config, read_json
from jaxlm.train.setup import Trainer, build_trainer


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """Parameters of a run's newest whole checkpoint, with what is needed to use them."""

    config: RunConfig
    tokenizer: Tokenizer
    trainer: Trainer
    step: int
    params: Params  # the ones to evaluate: averaged, if the optimizer averages


def mesh_here(mesh: MeshConfig, num_devices: int) -> MeshConfig:
    """The run's own mesh; on one device, that holds every axis alone, the mesh of one device."""
    return MeshConfig() if num_devices == 1 else mesh


def restore_run(run_dir: Path) -> TrainedRun:
    """Reads a run directory, which may still be training; changes nothing in it.

    Raises RunError for a directory without a run or checkpoint, CheckpointError for damage.
    """
    config = load_config(run_dir)
    config = dataclasses.replace(config, mesh=mesh_here(config.mesh, jax.device_count()))
    resolve(config, jax.device_count())
    env = read_json(run_dir / "env.json") or {}
    tokenizer = load_tokenizer(
        run_dir / TOKENIZER,
        sha256=env.get("tokenizer_sha256"),
        vocab_size=config.data.tokenizer.vocab_size,
    )
    trainer = build_trainer(config, tokenizer.bytes_per_token_V)
    damaged: list[str] = []
    step = newest_whole(run_dir / CHECKPOINTS, damaged.append)
    if step is None:
        raise RunError(
            f"{run_dir} has no checkpoint yet; wait for its first, or run `jaxlm train` again"
        )
    state = restore(run_dir / CHECKPOINTS, step, trainer.abstract_state)
    return TrainedRun(config, tokenizer, trainer, step, trainer.eval_params(state))
