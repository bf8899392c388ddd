# SPDX-License-Identifier: Apache-2.0
"""What follows from an update's routing: the routers' biases, and what telemetry tells of them.

    bias_e += rate * sign(mean choices - choices of e)           arXiv:2408.15664

The biases stand among the parameters, so that they are saved, split and evaluated like them, but
no optimizer touches them: this is their update.

Legend: L layers with experts  E experts
"""

import jax
import jax.numpy as jnp

from jaxlm.core.types import Metrics, Params
from jaxlm.model.config import ModelConfig
from jaxlm.nn.router import Routing


def balance(
    c: ModelConfig, params: Params, routing: Routing, applied: jax.Array
) -> tuple[Params, Metrics]:
    """Parameters with the biases moved, if the update was applied, and metrics by registered name.

    routing: sums over all tokens of the update, (L, ...)
    """
    metrics = _metrics(c, routing)
    if c.router_bias_rate == 0:
        return params, metrics
    choices_LE = routing.choices_E
    move_LE = jnp.sign(jnp.mean(choices_LE, axis=1, keepdims=True) - choices_LE)
    move_LE = jnp.where(applied, c.router_bias_rate * move_LE, 0.0)
    layers, period = dict(params["layers"]), len(c.layer_pattern)
    for i in range(period):
        block = layers[f"block_{i}"]
        bias_LE = block["moe"]["bias"] + move_LE[i::period]
        layers[f"block_{i}"] = block | {"moe": block["moe"] | {"bias": bias_LE}}
    return params | {"layers": layers}, metrics


def _metrics(c: ModelConfig, routing: Routing) -> Metrics:
    """Of all layers and, after the @, of each: the mean would hide the one that is uneven."""
    mean_L1 = jnp.maximum(jnp.mean(routing.choices_E, axis=1, keepdims=True), 1e-9)
    load_LE = routing.choices_E / mean_L1
    tokens_L = jnp.maximum(routing.tokens, 1.0)
    of_layer = {
        "router/max_load": jnp.max(load_LE, axis=1),
        "router/unused_frac": jnp.mean(load_LE == 0, axis=1, dtype=jnp.float32),
    }
    metrics = {
        "router/expert_tokens": routing.choices_E,
        "router/max_load": jnp.max(load_LE),
        "router/unused_frac": jnp.mean(of_layer["router/unused_frac"]),
        "router/balance_loss": jnp.mean(routing.balance / tokens_L),
        "router/z_loss": jnp.mean(routing.z_squares / tokens_L),
    }
    for name, values_L in of_layer.items():
        for i in range(c.num_sparse_layers):
            metrics[f"{name}@layer_{c.num_dense_layers + i}"] = values_L[i]
    return metrics
