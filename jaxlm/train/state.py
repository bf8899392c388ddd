# SPDX-License-Identifier: Apache-2.0
"""The training state: arrays only, created in place on the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.core.types import Params
from jaxlm.model.transformer import Model
from jaxlm.sharding.rules import shardings

Hparams = dict[str, jax.Array]  # f32 scalars: runtime inputs, so changing one recompiles nothing
Optimizer = Callable[[Hparams, jax.Array], optax.GradientTransformation]


class TrainState(NamedTuple):
    """All that an update reads and writes."""

    step: jax.Array  # int32: batches consumed, so the next one is batch(step)
    params: Params
    opt_state: optax.OptState
    hparams: Hparams


def make_init(
    model: Model, optimizer: Optimizer, hparams: Hparams
) -> Callable[[jax.Array], TrainState]:
    """rng -> state before the first update."""

    def init(rng: jax.Array) -> TrainState:
        scalars = jax.tree.map(jnp.float32, hparams)
        step = jnp.int32(0)
        params = model.init(rng)
        return TrainState(step, params, optimizer(scalars, step).init(params), scalars)

    return init


def state_shardings(model: Model, state: TrainState, mesh: Mesh) -> Any:
    """Where each leaf lives: a TrainState of NamedShardings.  `state` may be abstract.

    An optimizer's moment has its parameter's path as the end of its own, and its shape; it is
    split like the parameter.  Whatever has no such twin (counters, factored moments) is replicated.
    """
    replicated: Any = NamedSharding(mesh, PartitionSpec())
    params = shardings(model.axes(), mesh)
    twins = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(params), strict=True
        )
    }

    def moment(path: tuple[Any, ...], leaf: jax.Array) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = twins.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated

    return TrainState(
        step=replicated,
        params=params,
        opt_state=jax.tree_util.tree_map_with_path(moment, state.opt_state),
        hparams=jax.tree.map(lambda _: replicated, state.hparams),
    )
