# SPDX-License-Identifier: Apache-2.0
"""One update of parameters and optimizer state, or none: the guard against non-finite numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def apply_update(
    tx: optax.GradientTransformation, finite: jax.Array, grads: Any, opt_state: Any, params: Any
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """(params, opt_state, metrics) after one update, or unchanged where something is not finite.

    Args:    finite is a bool scalar, such as "the loss is"; the gradient's norm is checked here.
    Returns: metrics are scalars over all parameters: `update/applied` (bool), `grad/norm_l2`
             before clipping, `param/norm_l2` before the update, and `update/ratio_rms`, which is
             rms(update) / rms(parameter): 0 for a refused update or parameters all zero.
    Cost:    a branch, not a select: to choose between old and new, XLA keeps a copy of the state
             (CPU, 13.8 M parameters: 16 ms of AdamW become 52 ms).
    """
    grad_norm, param_norm = optax.tree.norm(grads), optax.tree.norm(params)
    applied = finite & jnp.isfinite(grad_norm)

    def accept(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any, jax.Array]:
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, optax.tree.norm(updates)

    def refuse(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any, jax.Array]:
        return params, opt_state, jnp.zeros_like(grad_norm)

    params, opt_state, update_norm = jax.lax.cond(
        applied, accept, refuse, grads, opt_state, params
    )
    return params, opt_state, {
        "update/applied": applied,
        "grad/norm_l2": grad_norm,
        "param/norm_l2": param_norm,
        "update/ratio_rms": jnp.where(param_norm > 0, update_norm / param_norm, 0),
    }
