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
HOST = "pinned_host"  # memory that accelerators read and write by themselves
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


def state_shardings(model: Model, state: TrainState, mesh: Mesh, is_offloaded: bool = False) -> Any:
    """Where each leaf lives: a TrainState of NamedShardings.  `state` may be abstract.

    is_offloaded:  the optimizer's arrays rest in the hosts' memory; its counters do not

    An optimizer's moment has its parameter's path as the end of its own, and its shape, of which a
    factored moment has 1 in the place of some dimensions; it is split like the parameter in the
    others.  Whatever has no such twin (counters) is replicated.
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
            shape, sharding = twins.get(path[start:], ((), replicated))
            kept = [dim == size for dim, size in zip(leaf.shape, shape, strict=False)]
            if len(shape) == leaf.ndim > 0 and all(map(max, kept, [d == 1 for d in leaf.shape])):
                axes = zip(kept, (*sharding.spec, *[None] * leaf.ndim), strict=False)
                return NamedSharding(
                    mesh, PartitionSpec(*[a if keep else None for keep, a in axes])
                )
        return replicated

    def placed(path: tuple[Any, ...], leaf: jax.Array) -> NamedSharding:
        sharding = moment(path, leaf)
        return sharding.with_memory_kind(HOST) if is_offloaded and leaf.ndim > 0 else sharding

    return TrainState(
        step=replicated,
        params=params,
        opt_state=jax.tree_util.tree_map_with_path(placed, state.opt_state),
        hparams=jax.tree.map(lambda _: replicated, state.hparams),
    )


def on_device(opt_state: optax.OptState, shardings: Any) -> optax.OptState:
    """The optimizer's state where the devices can compute with it; as it is, if it is there."""
    is_offloaded = lambda s: s.memory_kind == HOST
    fetch = lambda x, s: jax.device_put(x, s.with_memory_kind("device")) if is_offloaded(s) else x
    return jax.tree.map(fetch, opt_state, shardings)
