# SPDX-License-Identifier: Apache-2.0
"""Optimizer and schedule.  Standard library only."""

import dataclasses
from typing import Literal

from jaxlm.core.checks import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Parameters whose path matches `pattern` (a regular expression) get scaled scalars."""

    pattern: str
    lr_scale: float = 1.0
    weight_decay_scale: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr_scale >= 0, f"GroupConfig.lr_scale of {self.pattern!r}", self.lr_scale, ">= 0")
        require(
            self.weight_decay_scale >= 0, f"GroupConfig.weight_decay_scale of {self.pattern!r}", self.weight_decay_scale, ">= 0"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """One update: clip, transform, decay, scale by the schedule."""

    peak_lr: float  # no default: it must be a decision
    name: Literal["adamw", "muon", "lion", "adafactor", "schedule_free"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup_steps: int = 0  # learning rate rises linearly from 0 over these updates
    final_lr_frac: float = 0.0  # learning rate after the last update, as a share of the peak
    decay_frac: float = 0.2  # wsd: share of all updates spent decaying
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # decoupled; matrices only
    clip_norm: float | None = 1.0  # of the global gradient norm
    z_loss: float = 0.0  # weight of logsumexp(logits)^2, arXiv:2204.02311 section 5
    muon_lr: float = 0.02  # peak for the hidden matrices; peak_lr then drives the rest
    muon_momentum: float = 0.95
    muon_steps: int = 5  # Newton-Schulz iterations
    groups: tuple[GroupConfig, ...] = ()  # the first match counts; every pattern must match something

    def __post_init__(self) -> None:
        require(self.peak_lr > 0, "OptimConfig.peak_lr", self.peak_lr, "> 0")
        require(self.muon_lr > 0, "OptimConfig.muon_lr", self.muon_lr, "> 0")
        require(self.muon_steps >= 1, "OptimConfig.muon_steps", self.muon_steps, ">= 1")
        require(self.warmup_steps >= 0, "OptimConfig.warmup_steps", self.warmup_steps, ">= 0")
        require(self.eps > 0, "OptimConfig.eps", self.eps, "> 0")
        require(self.weight_decay >= 0, "OptimConfig.weight_decay", self.weight_decay, ">= 0")
        require(self.z_loss >= 0, "OptimConfig.z_loss", self.z_loss, ">= 0")
        require(self.clip_norm is None or self.clip_norm > 0, "OptimConfig.clip_norm", self.clip_norm, "> 0 or None")
        require(0 <= self.final_lr_frac <= 1, "OptimConfig.final_lr_frac", self.final_lr_frac, "between 0 and 1")
        require(0 < self.decay_frac <= 1, "OptimConfig.decay_frac", self.decay_frac, "above 0, at most 1")
        for name in ("b1", "b2", "muon_momentum"):
            require(0 <= getattr(self, name) < 1, f"OptimConfig.{name}", getattr(self, name), "at least 0, below 1")
