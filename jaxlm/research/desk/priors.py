# SPDX-License-Identifier: Apache-2.0
"""What is worth trying before anything is known of this model: ideas, and how much to expect.

An effect is a share of the loss, negative where it falls, with the standard deviation of what one
may see; both are guesses of the authors, wide on purpose, until the ledger holds results for the
same fields (rank.py).  `answers` names the causes (diagnose) that an idea would mend.
Standard library only.
"""

import dataclasses
from collections.abc import Callable, Iterator

from jaxlm.config import RunConfig
from jaxlm.research.desk.records import Changes


@dataclasses.dataclass(frozen=True)
class Idea:
    """`changes` gives what to set in a config, or None where the idea does not apply."""

    title: str
    changes: Callable[[RunConfig], Changes | None]
    effect: float
    sd: float
    answers: tuple[str, ...] = ()


def _times(field: str, factor: float) -> Callable[[RunConfig], Changes | None]:
    section, name = field.split(".")
    cls = {"optim": "OptimConfig", "train": "TrainConfig"}[section]

    def changes(config: RunConfig) -> Changes | None:
        value = getattr(getattr(config, section), name)
        return {f"{cls}.{name}": f"{value * factor:.6g}"} if value else None

    return changes


def _to(field: str, value: object) -> Callable[[RunConfig], Changes | None]:
    cls, name = field.split(".")
    section = cls.removesuffix("Config").lower()

    def changes(config: RunConfig) -> Changes | None:
        is_there = getattr(getattr(config, section), name) == value
        return None if is_there else {field: repr(value)}

    return changes


def _warmup(share: float) -> Callable[[RunConfig], Changes | None]:
    return lambda c: {"OptimConfig.warmup_steps": str(round(c.train.num_steps * share))}


def _muon(config: RunConfig) -> Changes | None:
    return None if config.optim.name == "muon" else {"OptimConfig.name": "'muon'"}


def _swiglu(config: RunConfig) -> Changes | None:
    """Three matrices of two thirds the width: as many parameters."""
    if config.model.is_gated:
        return None
    width = max(8, round(config.model.ffn_dim * 2 / 3 / 8) * 8)
    return {"ModelConfig.activation": "'swiglu'", "ModelConfig.ffn_dim": str(width)}


def _smaller_batch(config: RunConfig) -> Changes | None:
    """The same tokens in twice as many updates."""
    batch, steps = config.data.batch_size, config.train.num_steps
    if batch % 2 or batch // 2 % config.train.num_micro_batches:
        return None
    return {"DataConfig.batch_size": str(batch // 2), "TrainConfig.num_steps": str(2 * steps)}


def _qk_norm(config: RunConfig) -> Changes | None:
    return None if config.model.qk_norm else {"ModelConfig.qk_norm": "True"}


IDEAS: tuple[Idea, ...] = (
    Idea("learning rate x2", _times("optim.peak_lr", 2), -0.005, 0.02, ("lr_too_low",)),
    Idea("learning rate x4", _times("optim.peak_lr", 4), 0.0, 0.04, ("lr_too_low",)),
    Idea("learning rate x1.4", _times("optim.peak_lr", 1.4), -0.003, 0.01, ("lr_too_low",)),
    Idea(
        "learning rate / 2", _times("optim.peak_lr", 0.5), 0.0, 0.02,
        ("lr_too_high", "divergence", "loss_spike_recurring"),
    ),
    Idea("learning rate / 4", _times("optim.peak_lr", 0.25), 0.01, 0.03, ("lr_too_high", "divergence")),
    Idea("Muon for the hidden matrices", _muon, -0.02, 0.02),
    Idea("twice the updates at half the batch", _smaller_batch, -0.01, 0.02),
    Idea("query-key norm", _qk_norm, -0.004, 0.008, ("attention_logit_growth", "divergence")),
    Idea("squared ReLU", _to("ModelConfig.activation", "relu2"), -0.004, 0.008),
    Idea("SwiGLU of as many parameters", _swiglu, -0.006, 0.008),
    Idea("linear decay", _to("OptimConfig.schedule", "linear"), -0.003, 0.008),
    Idea("cosine decay", _to("OptimConfig.schedule", "cosine"), -0.001, 0.008),
    Idea("constant, then a short decay", _to("OptimConfig.schedule", "wsd"), 0.0, 0.01),
    Idea("decay to zero", _to("OptimConfig.final_lr_frac", 0.0), -0.004, 0.006),
    Idea("no weight decay", _to("OptimConfig.weight_decay", 0.0), 0.001, 0.005),
    Idea("weight decay x3", _times("optim.weight_decay", 3), 0.0, 0.006, ("overfitting",)),
    Idea(
        "warm up over a tenth", _warmup(0.1), 0.0, 0.006,
        ("warmup_too_short", "loss_spike_isolated", "divergence"),
    ),
    Idea("warm up over a fiftieth", _warmup(0.02), -0.001, 0.005),
    Idea("longer memory of squares", _to("OptimConfig.b2", 0.99), 0.0, 0.005),
    Idea("shorter memory of squares", _to("OptimConfig.b2", 0.9), 0.001, 0.005, ("loss_spike_recurring",)),
    Idea("no clipping", _to("OptimConfig.clip_norm", None), 0.001, 0.006),
    Idea("clip at 0.3", _to("OptimConfig.clip_norm", 0.3), 0.001, 0.006, ("gradient_explosion",)),
    Idea("z-loss", _to("OptimConfig.z_loss", 1e-4), 0.0, 0.003, ("output_logit_drift",)),
    Idea("untied embeddings", _to("ModelConfig.tied_embeddings", False), -0.003, 0.01),
    Idea("tied embeddings", _to("ModelConfig.tied_embeddings", True), 0.003, 0.01),
    Idea("cap of the output logits", _to("ModelConfig.logit_softcap", 30.0), 0.0, 0.004, ("output_logit_drift",)),
    Idea("attention sinks", _to("ModelConfig.attention_sinks", True), 0.0, 0.004),
)  # fmt: skip


def applicable(config: RunConfig) -> Iterator[tuple[Idea, Changes]]:
    """Ideas that change something in a config, with what they change."""
    for idea in IDEAS:
        changes = idea.changes(config)
        if changes:
            yield idea, changes
