# SPDX-License-Identifier: Apache-2.0
"""One run's configuration: the parts, the rules between them, and the numbers that follow.

Standard library only; works without gin:

    config = RunConfig(model=ModelConfig(...), data=DataConfig(...), optim=OptimConfig(...), ...)
    print(resolve(config, num_devices=1).describe())
"""

import dataclasses
from typing import Any

from jaxlm.core.canonical import content_id, to_jsonable
from jaxlm.core.checks import require
from jaxlm.core.errors import ConfigError
from jaxlm.data.config import DataConfig
from jaxlm.model.accounting import num_params, train_flops_per_token
from jaxlm.model.config import ModelConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.sharding.config import MeshConfig
from jaxlm.train.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        require(
            self.data.tokenizer.vocab_size <= self.model.vocab_size,
            "DataConfig's TokenizerConfig.vocab_size",
            self.data.tokenizer.vocab_size,
            f"at most ModelConfig.vocab_size={self.model.vocab_size}, the rows of the embedding",
        )
        require(
            self.optim.warmup_steps < self.train.num_steps,
            "OptimConfig.warmup_steps",
            self.optim.warmup_steps,
            f"below TrainConfig.num_steps={self.train.num_steps}",
        )
        require(
            self.data.batch_size % self.train.num_micro_batches == 0,
            "DataConfig.batch_size",
            self.data.batch_size,
            f"a multiple of TrainConfig.num_micro_batches={self.train.num_micro_batches}",
        )

    @property
    def config_id(self) -> str:
        """sha256 of `identity`: runs of one id compute the same, on one mesh to the bit."""
        return content_id(identity(self))


# Fields that decide where and how often, not what is computed: they may change when a run resumes.
OPERATIONAL = {
    "mesh": None,  # the whole section
    "data": ("cache_dir", "read_threads", "prefetch"),
    "train": (
        "log_every", "checkpoint_every", "keep_checkpoints", "tensorboard", "profile_steps",
        "eval_every", "eval_batches", "sample_every", "sample_prompts", "sample_tokens",
    ),
}  # fmt: skip


def identity(config: RunConfig) -> dict[str, Any]:
    """The config as plain values, without the operational fields."""
    values = to_jsonable(config)
    for section, fields in OPERATIONAL.items():
        for field in list(values[section]) if fields is None else fields:
            del values[section][field]
    return values


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Numbers that follow from a RunConfig and the number of devices; computed here only."""

    mesh: tuple[int, int, int]  # devices along data, fsdp, model
    tokens_per_step: int
    total_tokens: int
    params: dict[str, int]  # by group
    train_flops_per_token: float  # forward and backward, matrix products only

    @property
    def num_params(self) -> int:
        return sum(self.params.values())

    def describe(self) -> dict[str, str]:
        """Name -> text, for the table that a run prints first."""
        groups = ", ".join(f"{name} {count:,}" for name, count in self.params.items() if count)
        data, fsdp, model = self.mesh
        return {
            "parameters": f"{self.num_params:,} ({groups})",
            "tokens": f"{self.total_tokens:,} = {self.tokens_per_step:,} per update "
            f"({self.total_tokens / self.num_params:.1f} per parameter)",
            "FLOPs": f"{self.train_flops_per_token:.3g} per token, "
            f"{self.train_flops_per_token * self.total_tokens:.3g} in all",
            "mesh": f"data {data} x fsdp {fsdp} x model {model}",
        }


def resolve(config: RunConfig, num_devices: int) -> Resolved:
    """Checks the config against the devices and computes what follows from both.

    Raises ConfigError when the batch or a width does not divide over the mesh.
    """
    mesh = config.mesh.shape(num_devices)
    data, fsdp, tensor = mesh
    rows = config.data.batch_size // config.train.num_micro_batches
    if rows % (data * fsdp):
        raise ConfigError(
            f"DataConfig.batch_size={config.data.batch_size} in {config.train.num_micro_batches} micro-"
            f"batches gives {rows} rows, not divisible by the mesh's data x fsdp = {data} x {fsdp}"
        )
    m = config.model
    widths = {
        "num_heads": m.num_heads,
        "num_kv_heads": m.kv_heads,
        "ffn_dim": m.ffn_dim,
        "vocab_size": m.vocab_size,
    }
    for name, width in widths.items():
        if width % tensor:
            raise ConfigError(
                f"ModelConfig.{name}={width} is not divisible by MeshConfig.model={tensor}"
            )
    if m.embed_dim % fsdp:
        raise ConfigError(
            f"ModelConfig.embed_dim={m.embed_dim} is not divisible by MeshConfig.fsdp={fsdp}"
        )
    tokens_per_step = config.data.batch_size * config.data.seq_len
    return Resolved(
        mesh=mesh,
        tokens_per_step=tokens_per_step,
        total_tokens=tokens_per_step * config.train.num_steps,
        params=num_params(m),
        train_flops_per_token=train_flops_per_token(m, config.data.seq_len),
    )
