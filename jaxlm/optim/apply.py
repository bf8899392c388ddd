# SPDX-License-Identifier: Apache-2.0
"""One update of parameters and optimizer state, or none: the guard against non-finite numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def apply_update(
    tx: optax.GradientTransformation,
    finite: jax.Array,
    grads: Any,
    opt_state: Any,
    params: Any,
    probe: Callable[[Any, Any, Any], jax.Array] | None = None,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """(params, opt_state, metrics) after one update; bitwise unchanged if anything is not finite.

    Args:    finite is a bool scalar, such as "the loss is"; the norms are checked here.
             probe, of (gradients, updates, parameters before them), gives one more metric, `probes`.
    Returns: metrics are scalars over all parameters: `update/applied` (bool), `grad/norm_l2`
             before clipping, `param/norm_l2` before the update, and `update/ratio_rms`, which is
             rms(update) / rms(parameter): 0 for a refused update, and where all parameters are.
    Cost:    a branch, not a select, so that the state is updated in place.  To choose between old
             and new values XLA keeps a copy of the old: AdamW of 13.8 M parameters on two CPU
             cores takes 50 ms with selects and 26 ms so.
    """
    grad_norm, param_norm = optax.tree.norm(grads), optax.tree.norm(params)
    # Having the parameters' norm decide too puts its reading of them before their overwriting.
    applied = finite & jnp.isfinite(grad_norm) & jnp.isfinite(param_norm)

    def refuse(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
        del grads  # x + -0.0 is x to the bit, and x + 0.0 is not for x = -0.0
        return jax.tree.map(lambda p: jnp.full_like(p, -0.0), params), opt_state

    updates, opt_state = jax.lax.cond(applied, tx.update, refuse, grads, opt_state, params)
    metrics = {
        "update/applied": applied,
        "grad/norm_l2": grad_norm,
        "param/norm_l2": param_norm,
        "update/ratio_rms": optax.tree.norm(updates)
        / jnp.where(param_norm > 0, param_norm, jnp.inf),
    }
    if probe is not None:
        # the parameters are overwritten only after the probe has read them: no copy of them is kept
        probes, updates = jax.lax.optimization_barrier((probe(grads, updates, params), updates))
        metrics["probes"] = probes
    return optax.apply_updates(params, updates), opt_state, metrics
