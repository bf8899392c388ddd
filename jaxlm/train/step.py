# SPDX-License-Identifier: Apache-2.0
"""One update: (state, batch) -> (state, metrics).  Pure; the jit boundary is at the end.

Legend: B batch  T positions  M micro-batches
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.core.types import Batch, Metrics, Params
from jaxlm.loss import LossSums
from jaxlm.nn.router import Routing
from jaxlm.optim.apply import apply_update
from jaxlm.sharding.rules import ROWS
from jaxlm.train.compiler import compiler_options
from jaxlm.train.probes import Probe
from jaxlm.train.state import Hparams, Optimizer, TrainState, on_device

LossFn = Callable[[Params, Batch, jax.Array], LossSums]
Schedule = Callable[[jax.Array, Hparams], jax.Array]  # share of the peak learning rate
Gradient = tuple[Params, LossSums]
Balance = Callable[[Params, Routing, jax.Array], tuple[Params, Metrics]]  # of the routers
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: Optimizer,
    lr_scale: Schedule,
    num_micro_batches: int = 1,
    zero_sums: Callable[[], LossSums] = lambda: LossSums(*jnp.zeros(5)),
    balance: Balance | None = None,
    probe: Probe | None = None,
) -> Step:
    """The update as a pure function.

    zero_sums:  makes what loss_fn returns, of no batch; the default is a dense model's
    balance:    of a model with experts: (params, routing, applied) -> params and metrics

    The tokens of the whole batch are counted first, so that every micro-batch's gradient is
    divided by the same number and their sum is the gradient of the batch's mean.
    A non-finite loss or gradient leaves parameters and optimizer as they were (optim/apply.py).
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        num_tokens = jnp.maximum(jnp.sum(batch["weights"]), 1.0)

        def objective(params: Params, part: Batch) -> tuple[jax.Array, LossSums]:
            sums = loss_fn(params, part, state.hparams["z_loss"])
            return sums.loss / num_tokens, sums

        gradient = partial(jax.grad(objective, has_aux=True), state.params)
        zeros = jax.tree.map(jnp.zeros_like, state.params), zero_sums()
        grads, sums = _accumulate(gradient, zeros, batch, num_micro_batches)

        look = None if probe is None else lambda g, u, p: probe(state.step, g, u, p, batch)
        params, opt_state, metrics = apply_update(
            optimizer(state.hparams, state.step),
            jnp.isfinite(sums.nats),
            grads,
            state.opt_state,
            state.params,
            look,
        )
        metrics |= {
            "train/loss_nats": sums.nats / num_tokens,
            "train/z_loss": sums.z_squares / num_tokens,
            "train/accuracy_frac": sums.correct / num_tokens,
            "train/tokens": sums.tokens,
            "optim/lr": state.hparams["peak_lr"] * lr_scale(state.step, state.hparams),
        }
        if balance is not None and sums.routing is not None:
            params, routers = balance(params, sums.routing, metrics["update/applied"])
            metrics |= routers
        return TrainState(state.step + 1, params, opt_state, state.hparams), metrics

    return step


def _accumulate(
    gradient: Callable[[Batch], Gradient], zeros: Gradient, batch: Batch, num_micro_batches: int
) -> Gradient:
    """Sums (gradient, loss sums) over the parts of a batch, one part in memory at a time."""
    if num_micro_batches == 1:
        return gradient(batch)

    def split(x_BT: jax.Array) -> jax.Array:
        # part m takes rows m, m + M, ...: each device cuts the rows that it already holds
        return x_BT.reshape(-1, num_micro_batches, *x_BT.shape[1:]).swapaxes(0, 1)

    def add(total: Gradient, part: Batch) -> tuple[Gradient, None]:
        return jax.tree.map(jnp.add, total, gradient(part)), None

    return jax.lax.scan(add, zeros, jax.tree.map(split, batch))[0]


def jit_train_step(step: Step, mesh: Mesh, shardings: Any) -> Step:
    """Compiles the step for a mesh: shardings in and out, the old state's memory reused."""
    replicated = NamedSharding(mesh, PartitionSpec())

    def fetched(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        opt_state = on_device(state.opt_state, shardings.opt_state)
        return step(state._replace(opt_state=opt_state), batch)

    return jax.jit(
        fetched,
        in_shardings=(shardings, NamedSharding(mesh, ROWS)),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
