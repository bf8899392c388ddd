# SPDX-License-Identifier: Apache-2.0
"""A trained run, back in memory: what `eval`, `generate` and notebooks begin with."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from jaxlm.config import RunConfig, resolve
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.core.types import Params
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.train.checkpoint import newest_whole, restore
from jaxlm.train.run_dir import CHECKPOINTS, TOKENIZER, load_config, read_json
from jaxlm.train.setup import Trainer, build_trainer, kernel_choices

IMPLS = ("attention_impl", "loss_impl", "expert_impl")  # fields of ModelConfig


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """Parameters of a run's newest whole checkpoint, with what is needed to use them."""

    config: RunConfig
    tokenizer: Tokenizer
    trainer: Trainer
    step: int
    params: Params  # the ones to evaluate: averaged, if the optimizer averages
    data_id: str | None  # of the data it was trained on
    notice: str | None = None  # what cannot be here as it was in training


def fitted(config: RunConfig, num_devices: int) -> tuple[RunConfig, int]:
    """The config with a mesh for the devices that are here, and how many of them it takes.

    The run's own mesh, else parameters and batch split over all devices, else one device, which
    holds every axis alone.  Raises ConfigError, of the run's own mesh, where none of them will do.
    """
    meshes = [(config.mesh, num_devices), (MeshConfig(data=1, fsdp=-1), num_devices)]
    if jax.process_count() == 1:
        meshes.append((MeshConfig(), 1))
    refused: list[ConfigError] = []
    for mesh, count in meshes:
        found = dataclasses.replace(config, mesh=mesh)
        try:
            resolve(found, count)
            return found, count
        except ConfigError as e:
            refused.append(e)
    raise refused[0]


def runnable(config: RunConfig, mesh: jax.sharding.Mesh) -> tuple[RunConfig, str | None]:
    """The config without kernels that these devices lack, and a notice of it.

    A run of other devices can be used here: what a kernel computes is the same by any other way.
    """
    try:
        kernel_choices(config, mesh)
    except ConfigError as e:
        model = config.model
        auto: dict[str, Any] = {name: "auto" for name in IMPLS if getattr(model, name) == "pallas"}
        model = dataclasses.replace(model, **auto)
        return dataclasses.replace(
            config, model=model
        ), f"{e.__cause__}; 'auto' takes its place here"
    return config, None


def restore_run(run_dir: Path) -> TrainedRun:
    """Reads a run directory, which may still be training; changes nothing in it.

    Raises RunError for a directory without a run or checkpoint, CheckpointError for damage.
    """
    config, num_devices = fitted(load_config(run_dir), jax.device_count())
    env = read_json(run_dir / "env.json") or {}
    tokenizer = load_tokenizer(
        run_dir / TOKENIZER,
        sha256=env.get("tokenizer_sha256"),
        vocab_size=config.data.tokenizer.vocab_size,
    )
    mesh = make_mesh(config.mesh, jax.devices()[:num_devices])
    here, notice = runnable(config, mesh)
    trainer = build_trainer(here, tokenizer.bytes_per_token_V, mesh)
    damaged: list[str] = []
    step = newest_whole(run_dir / CHECKPOINTS, damaged.append)
    if step is None:
        raise RunError(
            f"{run_dir} has no checkpoint yet; wait for its first, or run `jaxlm train` again"
        )
    state = restore(run_dir / CHECKPOINTS, step, trainer.abstract_state)
    params, data_id = trainer.eval_params(state), env.get("data_id")
    return TrainedRun(config, tokenizer, trainer, step, params, data_id, notice)
