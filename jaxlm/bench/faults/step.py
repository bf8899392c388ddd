# SPDX-License-Identifier: Apache-2.0
"""The product's own train step with knobs for faults, compiled once for every run of the suite.

The knobs are runtime inputs beside the optimizer's scalars: at their neutral values the step
computes what the product's computes.

Legend: L layers  V vocabulary
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.config import RunConfig
from jaxlm.core.types import Batch, Params
from jaxlm.loss import LossSums, batch_loss
from jaxlm.model.transformer import Model
from jaxlm.optim.build import make_optimizer
from jaxlm.optim.hparams import hparams
from jaxlm.optim.schedule import learning_rate_scale
from jaxlm.train.setup import Trainer, build_trainer
from jaxlm.train.state import Hparams, Optimizer, make_init, state_shardings
from jaxlm.train.step import jit_train_step, make_train_step

Knobs = dict[str, Any]  # np.float32 scalars
GRADIENT = ("layer_0", "layer_1", "embed")  # parts whose gradient the step can scale


def neutral() -> Knobs:
    """Knobs that change nothing."""
    one, zero = np.float32(1), np.float32(0)
    scales = {f"fault/grad_scale@{part}": one for part in GRADIENT}
    scales |= {f"fault/update_scale@{part}": one for part in GRADIENT}
    others = ("fault/qk_growth", "fault/kick", "fault/is_bf16")
    return {**scales, **dict.fromkeys(others, zero)}


def scalars_of(config: RunConfig, knobs: Knobs) -> Hparams:
    """The optimizer's scalars and the knobs; what the loss needs travels in `z_loss`."""
    scalars = hparams(config.optim, config.train.num_steps)
    scales = [knobs[f"fault/grad_scale@{part}"] for part in GRADIENT]
    loss_scalars = np.array([scalars["z_loss"], *scales], np.float32)
    return {**scalars, **knobs, "z_loss": loss_scalars}


def build_faulty_trainer(config: RunConfig, bytes_per_token_V: np.ndarray) -> Trainer:
    """As setup.build_trainer, of a model with an embedding and at most two layers."""
    base = build_trainer(config, bytes_per_token_V)
    model = base.model
    optimizer = _with_faults(make_optimizer(config.optim, model.axes()))
    init = make_init(model, optimizer, scalars_of(config, neutral()))
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = state_shardings(model, shapes, base.mesh)
    lr_scale = partial(learning_rate_scale, config.optim.schedule)
    zero_sums = partial(LossSums.zeros, config.model)
    step = make_train_step(
        partial(_loss, model), optimizer, lr_scale, zero_sums=zero_sums, probe=base.probe
    )
    return dataclasses.replace(
        base,
        init=jax.jit(init, out_shardings=shardings),
        step=jit_train_step(step, base.mesh, shardings),
    )


def _loss(model: Model, params: Params, batch: Batch, z_and_scales: jax.Array) -> LossSums:
    scales = dict(zip(GRADIENT, z_and_scales[1:], strict=True))

    def scaled(path: Any, p: jax.Array) -> jax.Array:
        fixed = jax.lax.stop_gradient(p)
        return fixed + _by_part(path, p, scales) * (p - fixed)

    seen = jax.tree_util.tree_map_with_path(scaled, params)
    return batch_loss(model, seen, batch, z_and_scales[0])


def _by_part(path: Any, p: jax.Array, scales: dict[str, Any]) -> Any:
    """The factor of one parameter, which broadcasts over it."""
    if path[0].key == "embed":
        return scales["embed"]
    if path[0].key != "layers":
        return 1.0
    layers_L = jnp.stack([scales["layer_0"], scales["layer_1"]])[: p.shape[0]]
    return layers_L.reshape(-1, *[1] * (p.ndim - 1))


def _with_faults(optimizer: Optimizer) -> Optimizer:
    def make(h: Hparams, step: jax.Array) -> optax.GradientTransformation:
        base = optimizer({**h, "z_loss": h["z_loss"][0]}, step)
        scales = {part: h[f"fault/update_scale@{part}"] for part in GRADIENT}

        def disturb(path: Any, u: jax.Array, p: jax.Array) -> jax.Array:
            u *= _by_part(path, p, scales)
            if path[-1].key in ("wq", "wk"):
                u += h["fault/qk_growth"] * p
            noise = jnp.sin(jnp.arange(p.size, dtype=jnp.float32) * 12.9898).reshape(p.shape)
            u += h["fault/kick"] * noise * jnp.sqrt(jnp.mean(p * p))
            rounded = jax.lax.reduce_precision(p + u, 8, 7) - p
            return jnp.where(h["fault/is_bf16"] > 0, rounded, u)

        def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            updates, state = base.update(grads, state, params)
            return jax.tree_util.tree_map_with_path(disturb, updates, params), state

        return optax.GradientTransformation(base.init, update)

    return make
