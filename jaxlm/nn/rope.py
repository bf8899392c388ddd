# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding and its context-extension variants.

A head's dimensions i and i + H/2 form a pair that is turned by position * frequency_i.
Sources: RoPE arXiv:2104.09864; linear arXiv:2306.15595; NTK-aware and YaRN arXiv:2309.00071;
llama3 arXiv:2407.21783 section 3.4.2 and the released configuration (low 1, high 4).

Legend: B batch  T positions  N heads  H head width  F = H/2 frequencies
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def rope_frequencies(
    head_dim: int,
    theta: float,
    scaling: str = "none",
    factor: float = 1.0,
    original_len: int = 8192,
) -> tuple[np.ndarray, float]:
    """Angle per position of each pair of dimensions, and what queries and keys are multiplied by.

    Returns (radians per position, float64 (H/2,)), gain); the gain is 1 except for YaRN.
    Raises ValueError for an unknown scaling.
    """
    freq_F = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns_F = original_len * freq_F / (2 * math.pi)  # of each pair over the original context
    if scaling == "none":
        return freq_F, 1.0
    if scaling == "linear":
        return freq_F / factor, 1.0
    if scaling == "ntk":
        stretched = theta * factor ** (head_dim / (head_dim - 2))
        return stretched ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim), 1.0
    if scaling == "llama3":  # pairs under 1 turn are interpolated, over 4 kept, linear between
        keep_F = np.clip((turns_F - 1.0) / (4.0 - 1.0), 0.0, 1.0)
        return freq_F * (keep_F + (1 - keep_F) / factor), 1.0
    if scaling == "yarn":  # as llama3, but the ramp (1 to 32 turns) is linear in the pair's index
        low, high = (
            head_dim * math.log(original_len / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (32.0, 1.0)
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), head_dim - 1)
        keep_F = 1 - np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
        return freq_F * (keep_F + (1 - keep_F) / factor), 0.1 * math.log(factor) + 1.0
    raise ValueError(f"unknown RoPE scaling {scaling!r}")


def rope_tables(
    positions_BT: jax.Array, frequencies_F: np.ndarray, gain: float
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of the angle of every position and pair, f32 (B, T, 1, H/2): one for all layers."""
    frequencies_111F = jnp.asarray(frequencies_F, jnp.float32)[None, None, None]
    angle_BT1F = positions_BT[:, :, None, None] * frequencies_111F
    return jnp.cos(angle_BT1F) * gain, jnp.sin(angle_BT1F) * gain


def apply_rope(x_BTNH: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns every pair of dimensions.  Numerics: products in f32, result in x's dtype."""
    cos_BT1F, sin_BT1F = tables
    a_BTNF, b_BTNF = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned_BTNH = jnp.concatenate(
        [a_BTNF * cos_BT1F - b_BTNF * sin_BT1F, b_BTNF * cos_BT1F + a_BTNF * sin_BT1F], axis=-1
    )
    return turned_BTNH.astype(x_BTNH.dtype)
