# SPDX-License-Identifier: Apache-2.0
"""From a config to what the loop calls: model, mesh, state and compiled functions.

Legend: V vocabulary
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Params
from jaxlm.evaluate import EvalStep, make_eval_step
from jaxlm.loss import LossSums, batch_loss
from jaxlm.model.balance import balance
from jaxlm.model.transformer import Model
from jaxlm.nn import experts, kernels
from jaxlm.optim.build import eval_params, make_optimizer
from jaxlm.optim.hparams import hparams
from jaxlm.optim.schedule import learning_rate_scale
from jaxlm.sharding.by_layers import by_layers
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import BATCH, ROWS, Rules, rules_of
from jaxlm.train.probes import Probe
from jaxlm.train.state import TrainState, make_init, on_device, state_shardings
from jaxlm.train.step import Step, jit_train_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Pure functions of one config, compiled for one mesh on first use."""

    model: Model
    mesh: Mesh
    rules: Rules  # the mesh's strategy
    abstract_state: TrainState  # shapes, dtypes and shardings
    init: Callable[[jax.Array], TrainState]
    step: Step
    eval_params: Callable[[TrainState], Params]  # differs from state.params when averaged
    eval_step: EvalStep
    probe: Probe | None  # names what the step's metric `probes` holds

    def fresh_state(self, config: RunConfig) -> TrainState:
        """The state before the first update, with the seed and the optimizer's scalars of `config`.

        All else of `config` must be as in the config that the trainer was built for.
        """
        state = self.init(jax.random.key(config.train.seed))
        scalars = hparams(config.optim, config.train.num_steps)
        placed = jax.tree.map(
            lambda x, old: jax.device_put(x, old.sharding), scalars, state.hparams
        )
        return state._replace(hparams=placed)


def build_trainer(
    config: RunConfig, bytes_per_token_V: np.ndarray, mesh: Mesh | None = None
) -> Trainer:
    """All functions of a run.  Nothing is compiled or allocated yet.

    bytes_per_token_V: of the tokenizer, whose vocabulary may be smaller than the embedding's.

    Raises ConfigError when the config does not fit the devices, or asks for a kernel that they lack.
    """
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    kernel_choices(config, mesh)
    model = Model(config.model, config.mesh)
    optimizer = make_optimizer(config.optim, model.axes(), by_layers)
    unused_rows = config.model.vocab_size - len(bytes_per_token_V)
    init = make_init(model, optimizer, hparams(config.optim, config.train.num_steps))
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = state_shardings(model, shapes, mesh, config.train.offload_optimizer)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    loss_fn = partial(batch_loss, model)
    lr_scale = partial(learning_rate_scale, config.optim.schedule)
    probe = make_probe(config, model, mesh)
    step = make_train_step(
        loss_fn,
        optimizer,
        lr_scale,
        config.train.num_micro_batches,
        partial(LossSums.zeros, config.model),
        partial(balance, config.model),
        probe,
    )

    def averaged(state: TrainState) -> Params:
        opt_state = on_device(state.opt_state, shardings.opt_state)
        return eval_params(config.optim, opt_state, state.params)

    return Trainer(
        model=model,
        mesh=mesh,
        rules=rules_of(config.mesh),
        abstract_state=abstract,
        init=jax.jit(init, out_shardings=shardings),
        step=jit_train_step(step, mesh, shardings),
        eval_params=averaged,
        eval_step=make_eval_step(model, np.pad(bytes_per_token_V, (0, unused_rows))),
        probe=probe,
    )


def kernel_choices(config: RunConfig, mesh: Mesh) -> dict[str, str]:
    """What attention, loss and experts run by.  Raises ConfigError for a kernel that cannot run here."""
    model, data = config.model, config.data
    rows = data.batch_size // config.train.num_micro_batches
    sizes = rows, data.seq_len, model.vocab_size, model.embed_dim
    try:
        with on_mesh(mesh, rules_of(config.mesh)):
            found = kernels.chosen(
                model.attention_impl, model.loss_impl, *sizes, model.compute_dtype
            )
            if model.num_experts:
                widths = model.embed_dim, model.expert_width
                found["experts"] = experts.chosen(model.expert_impl, *widths, model.compute_dtype)
            return found
    except ValueError as e:
        is_choice = "impl 'pallas'" in str(e)  # not a damaged table of block sizes
        raise ConfigError(f"ModelConfig: {e}; set it to 'auto'" if is_choice else str(e)) from e


def abstract_batch(config: RunConfig, mesh: Mesh, rows: int) -> dict[str, Any]:
    """A batch of packed rows without its numbers."""
    sharding = jax.NamedSharding(mesh, ROWS)
    names = ("tokens", "targets", "positions", "segment_ids", "weights")
    return {
        name: jax.ShapeDtypeStruct(
            (rows, config.data.seq_len),
            np.float32 if name == "weights" else np.int32,
            sharding=sharding,
        )
        for name in names
    }


def make_probe(config: RunConfig, model: Model, mesh: Mesh) -> Probe | None:
    """As TrainConfig.probe_every says; it looks at one row of the batch on each device."""
    if config.train.probe_every is None:
        return None
    is_whole = mesh.shape["pipeline"] == 1 and mesh.shape["context"] == 1
    num_rows = math.prod(mesh.shape[axis] for axis in BATCH) if is_whole else 0
    return Probe(model, config.train.probe_every, num_rows)


@contextlib.contextmanager
def compiling_step(trainer: Trainer, config: RunConfig) -> Iterator[None]:
    """Compiles the step beside the body, which initialises or restores; done when the body is.

    Tracing comes before the body, as threads take turns at Python.  A step that cannot be compiled
    says so at its first call, like one that was not compiled here.
    """
    with ThreadPoolExecutor(1, "compile") as pool:
        if isinstance(trainer.step, jax.stages.Wrapped):  # and not loaded from a plan
            batch = abstract_batch(config, trainer.mesh, config.data.batch_size)
            with on_mesh(trainer.mesh, trainer.rules):
                pool.submit(trainer.step.lower(trainer.abstract_state, batch).compile)
        yield


@contextlib.contextmanager
def on_mesh(mesh: Mesh, rules: Rules | None = None) -> Iterator[None]:
    """Where model code is traced: gives its logical axis names their meaning.

    rules: None means the default strategy; any other gives the same results.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules or rules_of(MeshConfig())):
        yield
