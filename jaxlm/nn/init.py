# SPDX-License-Identifier: Apache-2.0
"""Every initialiser of the model, and the one way to declare a parameter.

| parameter                     | distribution                               | why                          |
|-------------------------------|--------------------------------------------|------------------------------|
| embedding of its own          | normal, std 1                              | the stream starts at rms 1   |
| output matrix, tied embedding | normal, std 0.02                           | logits start near zero       |
| matrices that read a stream   | normal, std 1/sqrt(fan in)                 | keeps the scale of its input |
| matrices that write residuals | normal, std 1/sqrt(fan in * 2 * layers)    | the sum over depth stays O(1)|
| norm scales                   | ones                                       | starts as plain RMSNorm      |
| attention sinks               | zeros                                      | one token's worth of nothing |
| routers                       | normal, std 1/sqrt(fan in)                 | logits start at rms 1        |
| biases of routers             | zeros                                      | no expert is favoured        |
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

ones = nn.initializers.ones_init()
zeros = nn.initializers.zeros_init()


def embed(is_tied: bool) -> nn.initializers.Initializer:
    return nn.initializers.normal(0.02 if is_tied else 1.0)


def output() -> nn.initializers.Initializer:
    return nn.initializers.normal(0.02)


def reads(fan_in: int) -> nn.initializers.Initializer:
    return nn.initializers.normal(1.0 / math.sqrt(fan_in))


def writes(fan_in: int, num_layers: int) -> nn.initializers.Initializer:
    return nn.initializers.normal(1.0 / math.sqrt(fan_in * 2 * num_layers))


def param(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
) -> jax.Array:
    """Declares an f32 parameter whose dimensions carry logical axis names (sharding/rules.py)."""
    boxed: Any = nn.with_logical_partitioning(init, axes)
    return module.param(name, boxed, shape, jnp.float32)
