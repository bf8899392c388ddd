# SPDX-License-Identifier: Apache-2.0
"""Optimizer and schedule.  Standard library only."""

import dataclasses
import re
from typing import Literal

from jaxlm.core.checks import require
from jaxlm.core.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Parameters whose whole path matches `pattern` (a regular expression) get scaled scalars."""

    pattern: str  # such as "layers/.*/attention/.*"
    lr_scale: float = 1.0
    weight_decay_scale: float = 1.0

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(
                f"GroupConfig.pattern must be a regular expression, got {self.pattern!r}: {error}"
            ) from None
        for name in ("lr_scale", "weight_decay_scale"):
            value = getattr(self, name)
            require(value >= 0, f"GroupConfig.{name} of {self.pattern!r}", value, ">= 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """One update: clip, transform, decay, scale by the schedule (optim/build.py)."""

    peak_lr: float  # no default: it must be a decision
    name: Literal["adamw", "muon", "lion", "adafactor", "schedule_free"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup_steps: int = 0  # the learning rate rises linearly over these updates, to the peak
    final_lr_frac: float = 0.0  # learning rate of the last update, as a share of the peak
    decay_frac: float = 0.2  # wsd: share of all updates spent decaying
    b1: float = 0.9  # not used by adafactor
    b2: float = 0.95  # adafactor: upper bound of its own 1 - t^-0.8
    eps: float = 1e-8  # in units of the gradient
    weight_decay: float = 0.1  # decoupled; of matrices and embeddings
    clip_norm: float | None = 1.0  # of the global gradient norm
    z_loss: float = 0.0  # weight of logsumexp(logits)^2, arXiv:2204.02311 section 5
    muon_lr: float = 0.02  # peak for the hidden matrices; peak_lr then drives the rest
    muon_momentum: float = 0.95
    muon_steps: int = 5  # Newton-Schulz iterations
    groups: tuple[GroupConfig, ...] = ()  # the first match counts; every pattern must match

    def __post_init__(self) -> None:
        for name in ("peak_lr", "muon_lr", "eps"):
            require(getattr(self, name) > 0, f"OptimConfig.{name}", getattr(self, name), "> 0")
        for name in ("warmup_steps", "weight_decay", "z_loss"):
            require(getattr(self, name) >= 0, f"OptimConfig.{name}", getattr(self, name), ">= 0")
        for name in ("b1", "b2", "muon_momentum"):
            value = getattr(self, name)
            require(0 <= value < 1, f"OptimConfig.{name}", value, "at least 0, below 1")
        clip, final, decay = self.clip_norm, self.final_lr_frac, self.decay_frac
        require(clip is None or clip > 0, "OptimConfig.clip_norm", clip, "> 0 or None")
        require(0 <= final <= 1, "OptimConfig.final_lr_frac", final, "between 0 and 1")
        require(0 < decay <= 1, "OptimConfig.decay_frac", decay, "above 0, at most 1")
        require(self.muon_steps >= 1, "OptimConfig.muon_steps", self.muon_steps, ">= 1")
        if self.name == "schedule_free":  # averages instead of decaying, with b1 as a divisor
            field = "OptimConfig.schedule of schedule_free"
            require(self.schedule == "constant", field, self.schedule, "'constant'")
            require(self.b1 > 0, "OptimConfig.b1 of schedule_free", self.b1, "> 0")
