# SPDX-License-Identifier: Apache-2.0
"""The learning rate that a config asks for at every update: jaxlm/optim/schedule.py without jax."""

import numpy as np

from jaxlm.config import RunConfig


def expected_lr(config: RunConfig, steps: np.ndarray) -> np.ndarray:
    """(n,) learning rates of the updates numbered `steps`, from 1; float64."""
    o, last, u = config.optim, config.train.num_steps, steps.astype(np.float64)
    warm = np.minimum(u / max(o.warmup_steps, 1), 1)
    if o.schedule == "constant":
        return o.peak_lr * warm
    start = float(o.warmup_steps)
    if o.schedule == "wsd":
        start = max(start, last - o.decay_frac * last)
    progress = np.clip((u - start) / max(last - start, 1e-6), 0, 1)
    left = 0.5 * (1 + np.cos(np.pi * progress)) if o.schedule == "cosine" else 1 - progress
    return o.peak_lr * warm * (o.final_lr_frac + (1 - o.final_lr_frac) * left)
