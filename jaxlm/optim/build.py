# SPDX-License-Identifier: Apache-2.0
"""From config and run-time scalars to one optax transformation.

    g <- g * min(1, clip_norm / |g|)                       over all parameters together
    u <- adamw | muon | lion | adafactor (g)
    p <- p - lr * (u + weight_decay * p)                   weight_decay of vectors: 0

lr = peak * schedule * group, where the peak is `muon_lr` for the matrices that Muon drives and
`peak_lr` for all else.  Schedule-free (arXiv:2405.15682) takes that step, with AdamW's u without
its first moment, from the sequence z, and the parameters are a blend of z and of its average.

| optimizer     | reads of the scalars, besides learning rates and weight decay | source           |
|---------------|---------------------------------------------------------------|------------------|
| adamw         | b1 b2 eps                                                     | arXiv:1711.05101 |
| muon          | muon_momentum; b1 b2 eps for embeddings and vectors           | optim/muon.py    |
| lion          | b1 b2                                                         | arXiv:2302.06675 |
| adafactor     | b2 eps                                                        | adafactor.py     |
| schedule_free | b1 b2 eps                                                     | arXiv:2405.15682 |
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxlm.optim.adafactor import scale_by_adafactor
from jaxlm.optim.config import OptimConfig
from jaxlm.optim.groups import NO_GROUP, Label, group_indices, is_axes, label
from jaxlm.optim.muon import Spread, scale_by_muon
from jaxlm.optim.schedule import learning_rate_scale

Hparams = Mapping[str, jax.Array]
MakeTransform = Callable[[Hparams, jax.Array], optax.GradientTransformation]


def make_optimizer(
    config: OptimConfig, axes: Any, spread: Spread = lambda work, x, *_: work(x)
) -> MakeTransform:
    """Checks the groups once; the result builds the transformation of one update.

    Args:    axes is shaped like the parameters, with a tuple of logical names at every leaf;
             spread says where Muon does its layers on a mesh (optim/muon.py).
    Returns: (hparams, step) -> GradientTransformation, to be called inside the jitted step;
             hparams as made by optim/hparams.py, step = earlier updates.  All state is f32 but
             for counters, and its structure depends on `config` alone.
    Raises:  ConfigError for a group that no parameter belongs to; ValueError for an unlabelled
             parameter.

    Example:
        >>> make = make_optimizer(OptimConfig(peak_lr=1e-3), {"scale": ("norm",)})
        >>> tx = make(hparams(config, num_steps=100), step)               # doctest: +SKIP
        >>> updates, opt_state = tx.update(grads, opt_state, params)      # doctest: +SKIP
    """
    labels = jax.tree.map(label, axes, is_leaf=is_axes)
    is_trained = jax.tree.map(lambda label: label != "state", labels)
    axes, groups, labels = (
        _only(is_trained, tree) for tree in (axes, group_indices(axes, config.groups), labels)
    )

    def make(hparams: Hparams, step: jax.Array) -> optax.GradientTransformation:
        schedule = learning_rate_scale(config.schedule, step, hparams)
        descend = _descend(config, labels, groups, schedule, hparams)
        clip = _clip_by_global_norm(hparams["clip_norm"])
        if config.name == "schedule_free":
            tx = optax.chain(clip, _schedule_free(descend, schedule, hparams))
        else:
            tx = optax.chain(clip, _direction(config, axes, labels, hparams, spread), descend)
        return tx if all(jax.tree.leaves(is_trained)) else optax.masked(tx, is_trained)

    return make


def _only(is_kept: Any, tree: Any) -> Any:
    """The tree without some parameters, as optax.masked shows trees to what it wraps."""
    return jax.tree.map(lambda kept, x: x if kept else optax.MaskedNode(), is_kept, tree)


def eval_params(config: OptimConfig, opt_state: Any, params: Any) -> Any:
    """The parameters to evaluate: schedule-free's average, or `params` as they are."""
    if config.name != "schedule_free":
        return params
    if not isinstance(opt_state, optax.MaskedState):
        return optax.contrib.schedule_free_eval_params(opt_state[-1], params)
    state, is_masked = opt_state.inner_state[-1], lambda x: isinstance(x, optax.MaskedNode)
    is_trained = jax.tree.map(lambda z: not is_masked(z), state.z, is_leaf=is_masked)
    averaged = optax.contrib.schedule_free_eval_params(state, _only(is_trained, params))
    return jax.tree.map(
        lambda mean, own: own if is_masked(mean) else mean, averaged, params, is_leaf=is_masked
    )


def _clip_by_global_norm(max_norm: jax.Array) -> optax.GradientTransformation:
    """g * min(1, max_norm / |g|).  optax's own divides elementwise, which XLA writes out first."""

    def clip(grads: Any, _: Any) -> Any:
        return optax.tree.scale(jnp.minimum(1, max_norm / optax.tree.norm(grads)), grads)

    return optax.stateless(clip)


def _direction(
    config: OptimConfig, axes: Any, labels: Any, h: Hparams, spread: Spread
) -> optax.GradientTransformation:
    """From the clipped gradient to u, before decay and learning rate."""
    match config.name:
        case "adamw":
            return optax.scale_by_adam(h["b1"], h["b2"], h["eps"])
        case "muon":
            return _muon(config, axes, labels, h, spread)
        case "lion":
            return optax.scale_by_lion(h["b1"], h["b2"])
        case "adafactor":
            return scale_by_adafactor(h["b2"], h["eps"], axes)
    raise ValueError(f"no transformation for the optimizer {config.name!r}")


def _muon(
    config: OptimConfig, axes: Any, labels: Any, h: Hparams, spread: Spread
) -> optax.GradientTransformation:
    """Muon for the matrices, Adam for the rest."""
    parts = jax.tree.map(lambda label: "muon" if label == "matrix" else "adam", labels)
    hidden = jax.tree.map(lambda p, a: a if p == "muon" else optax.MaskedNode(), parts, axes)
    muon = scale_by_muon(h["muon_momentum"], config.muon_steps, hidden, spread)
    adam = optax.scale_by_adam(h["b1"], h["b2"], h["eps"])
    return optax.partition({"muon": muon, "adam": adam}, parts)


def _descend(
    config: OptimConfig, labels: Any, groups: Any, schedule: jax.Array, h: Hparams
) -> optax.GradientTransformation:
    """u -> -lr * (u + weight_decay * p), both scalars by parameter."""

    def step(update: jax.Array, param: jax.Array, label: Label, group: int) -> jax.Array:
        peak = "muon_lr" if config.name == "muon" and label == "matrix" else "peak_lr"
        lr = h[peak] * schedule
        decay = 0.0 if label == "vector" else h["weight_decay"]
        if group != NO_GROUP:
            lr *= h[f"groups/{group}/lr_scale"]
            decay *= h[f"groups/{group}/weight_decay_scale"]
        return -lr * (update + decay * param)

    return optax.stateless(lambda u, params: jax.tree.map(step, u, params, labels, groups))


def _schedule_free(
    descend: optax.GradientTransformation, schedule: jax.Array, h: Hparams
) -> optax.GradientTransformation:
    """Adam without its first moment, averaged; the weights of the average are max(lr)^2."""
    rms = optax.scale_by_rms(h["b2"], h["eps"], eps_in_sqrt=False, bias_correction=True)
    inner = optax.contrib.schedule_free(optax.chain(rms, descend), h["peak_lr"] * schedule, h["b1"])

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = inner.update(grads, state, params)
        return updates, state._replace(b1=h["b1"])  # optax keeps the one that `init` was given

    return optax.GradientTransformation(inner.init, update)
