# SPDX-License-Identifier: Apache-2.0
"""One run's configuration: the parts, the rules between them, and the numbers that follow.

Standard library only; works without gin:

    config = RunConfig(model=ModelConfig(...), data=DataConfig(...), optim=OptimConfig(...), ...)
    print(resolve(config, num_devices=1).describe())
"""

import dataclasses
import functools
import math
from typing import Any

from jaxlm.core.canonical import content_id, to_jsonable
from jaxlm.core.checks import require
from jaxlm.core.errors import ConfigError
from jaxlm.data.config import DataConfig
from jaxlm.model.accounting import num_active_params, num_params, train_flops_per_token
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

    @functools.cached_property
    def config_id(self) -> str:
        """sha256 of `identity`: runs of one id compute the same, on one mesh to the bit."""
        return content_id(identity(self))


# Fields that decide where and how often, not what is computed: they may change when a run resumes.
OPERATIONAL = {
    "mesh": None,  # the whole section
    "data": ("cache_dir", "read_threads", "prefetch"),
    "train": (
        "offload_optimizer", "log_every", "checkpoint_every", "keep_checkpoints", "tensorboard", "profile_steps",
        "eval_every", "eval_batches", "sample_every", "sample_prompts", "sample_tokens",
        "probe_every",
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

    mesh: dict[str, int]  # devices along each axis
    pipeline_idle_frac: float  # of each stage's time
    tokens_per_step: int
    total_tokens: int
    params: dict[str, int]  # by group
    active_params: int  # that one token meets; all of them without experts
    train_flops_per_token: float  # forward and backward, matrix products only

    @property
    def num_params(self) -> int:
        return sum(self.params.values())

    def describe(self) -> dict[str, str]:
        """Name -> text, for the table that a run prints first."""
        groups = ", ".join(f"{name} {count:,}" for name, count in self.params.items() if count)
        axes = [f"{axis} {size}" for axis, size in self.mesh.items() if size > 1]
        is_sparse = self.active_params < self.num_params
        active = f", of which a token meets {self.active_params:,}" if is_sparse else ""
        idle = f"; stages idle {self.pipeline_idle_frac:.1%} of the time"
        idle *= self.mesh["pipeline"] > 1
        return {
            "parameters": f"{self.num_params:,} ({groups}){active}",
            "tokens": f"{self.total_tokens:,} = {self.tokens_per_step:,} per update "
            f"({self.total_tokens / self.active_params:.1f} per parameter"
            f"{' that a token meets' if is_sparse else ''})",
            "FLOPs": f"{self.train_flops_per_token:.3g} per token, "
            f"{self.train_flops_per_token * self.total_tokens:.3g} in all",
            "mesh": (" x ".join(axes) or "one device") + idle,
        }


def resolve(config: RunConfig, num_devices: int) -> Resolved:
    """Checks the config against the devices and computes what follows from both.

    Raises ConfigError when the batch or a width does not divide over the mesh.
    """
    mesh = config.mesh.shape(num_devices)
    _check_mesh(config, mesh)
    m = config.model
    tokens_per_step = config.data.batch_size * config.data.seq_len
    return Resolved(
        mesh=mesh,
        pipeline_idle_frac=config.mesh.schedule(mesh["pipeline"]).idle_frac,
        tokens_per_step=tokens_per_step,
        total_tokens=tokens_per_step * config.train.num_steps,
        params=num_params(m),
        active_params=num_active_params(m),
        train_flops_per_token=train_flops_per_token(m, config.data.seq_len),
    )


def _check_mesh(config: RunConfig, mesh: dict[str, int]) -> None:
    """Raises ConfigError for a dimension that its mesh axes do not divide, naming both."""
    m, data, parts = config.model, config.data, config.train.num_micro_batches
    batch, seq = f"DataConfig.batch_size={data.batch_size}", f"DataConfig.seq_len={data.seq_len} is"
    wide = ("fsdp", "expert", "context")
    is_ulysses = config.mesh.context_attention == "ulysses"
    heads = ("model", "context") if is_ulysses else ("model",)
    splits: list[tuple[str, int, tuple[str, ...]]] = [
        (
            f"{batch} in {parts} micro-batches gives {data.batch_size // parts} rows,",
            data.batch_size // parts,
            ("slice", "data", "fsdp", "expert", "pipeline"),
        ),
        (
            seq,
            data.seq_len,
            ("context", "model") if config.mesh.sequence_parallel else ("context",),
        ),
        (f"ModelConfig.num_heads={m.num_heads} is", m.num_heads, heads),
        (f"ModelConfig.num_kv_heads={m.kv_heads} is", m.kv_heads, heads),
        (f"ModelConfig.ffn_dim={m.ffn_dim} is", m.ffn_dim, ("model",)),
        (f"ModelConfig.vocab_size={m.vocab_size} is", m.vocab_size, ("model",)),
        (f"ModelConfig.embed_dim={m.embed_dim} is", m.embed_dim, wide),
    ]
    if m.num_experts:
        splits += [
            (f"ModelConfig.num_experts={m.num_experts} is", m.num_experts, ("expert",)),
            (f"ModelConfig.expert_ffn_dim={m.expert_width} is", m.expert_width, ("model",)),
        ]
    for what, size, axes in splits:
        used = [axis for axis in axes if mesh[axis] > 1]
        if size % math.prod(mesh[axis] for axis in used):
            told = " x ".join(f"MeshConfig.{axis}={mesh[axis]}" for axis in used)
            raise ConfigError(f"{what} not divisible by {told}")
    if mesh["context"] > 1 and not is_ulysses and data.seq_len % (2 * mesh["context"]):
        raise ConfigError(
            f"{seq} not divisible by twice MeshConfig.context={mesh['context']}: "
            f"context_attention={config.mesh.context_attention!r} gives every device two chunks"
        )
    if mesh["pipeline"] > 1:
        _check_pipeline(config, mesh)


def _check_pipeline(config: RunConfig, mesh: dict[str, int]) -> None:
    """Raises ConfigError where layers or rows do not divide into stages and micro-batches."""
    m, pattern = config.model, len(config.model.layer_pattern)
    if m.num_dense_layers:
        raise ConfigError(
            f"ModelConfig.num_dense_layers={m.num_dense_layers} must be 0 with MeshConfig.pipeline="
            f"{mesh['pipeline']}: stages are equal; use the axes expert and fsdp instead"
        )
    turns = mesh["pipeline"] * config.mesh.pipeline_repeats * pattern
    if m.num_layers % turns:
        raise ConfigError(
            f"ModelConfig.num_layers={m.num_layers} is not divisible by "
            f"MeshConfig.pipeline={mesh['pipeline']} x pipeline_repeats="
            f"{config.mesh.pipeline_repeats} x {pattern}, the length of layer_pattern"
        )
    queue = config.mesh.pipeline_micro_batches or mesh["pipeline"]
    rows = config.data.batch_size // config.train.num_micro_batches
    groups = math.prod(mesh[axis] for axis in ("slice", "data", "fsdp", "expert"))
    if rows % (groups * queue):
        raise ConfigError(
            f"{rows} rows on {groups} groups of devices (slice x data x fsdp x expert) are not "
            f"divisible by MeshConfig.pipeline_micro_batches={queue}"
        )
