# SPDX-License-Identifier: Apache-2.0
"""Learning rate of every update, as a share of the peak.

Updates are numbered u = 1 ... N.  The share is a product warm(u) * decay(u) of two lines:

    warm   rises from 1/W at u = 1 to 1 at u = W (the warmup's last update), then stays
    decay  is 1 up to u = S, then falls to `final_lr_frac` at u = N (the last update)

           S = W for linear and cosine;  max(W, N - decay_frac * N) for wsd, arXiv:2404.06395
           (its decay is linear here);  constant never falls

So the first update is never wasted on a zero rate, and without warmup the first decayed value
belongs to u = 1.  Beyond N the rate stays where it ended.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def learning_rate_scale(
    kind: str, step: jax.Array | int, hparams: Mapping[str, jax.Array]
) -> jax.Array:
    """The share in [0, 1] of the peak learning rate at update number `step` + 1.

    Args:    kind is an OptimConfig.schedule; step counts the earlier updates, refused ones
             too (int scalar);
             hparams as made by optim/hparams.py, traced or not.
    Returns: f32 scalar.  Numerics: f32, exact counts up to 2^24 updates.

    Example:
        >>> h = {"warmup_steps": 2, "num_steps": 6, "final_lr_frac": 0.0, "decay_frac": 0.5}
        >>> [round(float(learning_rate_scale("linear", step, h)), 2) for step in range(6)]
        [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    update = jnp.asarray(step, jnp.float32) + 1
    warmup, last = jnp.float32(hparams["warmup_steps"]), jnp.float32(hparams["num_steps"])
    warm = jnp.minimum(update / jnp.maximum(warmup, 1), 1)
    if kind == "constant":
        return warm
    start = warmup
    if kind == "wsd":
        start = jnp.maximum(warmup, last - hparams["decay_frac"] * last)
    # the least positive width only guards 0 / 0: nothing is left to decay when start == last
    progress = jnp.clip((update - start) / jnp.maximum(last - start, 1e-6), 0, 1)
    left = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if kind == "cosine" else 1 - progress
    final = hparams["final_lr_frac"]
    return warm * (final + (1 - final) * left)
