# SPDX-License-Identifier: Apache-2.0
"""Linear cross-entropy: hidden states and the output matrix in, loss and statistics out.

Legend: R rows  D width  V vocabulary
"""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.cross_entropy import reference, xla
from pallas_kernels.cross_entropy.rows import CrossEntropy, Task, sums
from pallas_kernels.tuning.chips import running_chip
from pallas_kernels.tuning.cross_entropy import CHIPS, Config, config, max_width

Impl = Literal["auto", "reference", "xla", "pallas"]
IMPLS = ("auto", "reference", "xla", "pallas")
Shaped = jax.Array | jax.ShapeDtypeStruct

WHOLE_LOGITS = 2**26  # up to here (256 MiB) `auto` keeps them whole where there is no kernel


def linear_cross_entropy(
    x_RD: jax.Array,
    table_VD: jax.Array,
    targets_R: jax.Array,
    weights_R: jax.Array,
    *,
    softcap: float | None = None,
    z_loss: jax.Array | float = 0.0,
    num_valid: int | None = None,
    impl: Impl = "auto",
    chip: str | None = None,
) -> CrossEntropy:
    """sum_R w (lse - z_target + z_loss * lse^2) of the logits z = x table^T, and statistics.

    x_RD:       bf16 or f32, whose products are in this dtype and summed in f32
    table_VD:   bf16 or f32; its gradient is summed in f32 and comes in its own dtype
    targets_R:  int; of a row that has a weight, one outside of the vocabulary costs 1e30 nats
    weights_R:  f32; a divisor belongs in here, where it costs nothing.  Rows of weight 0 count for
                nothing, whatever they hold; but for gradients their x must be finite
    softcap:    logits become cap * tanh(logits / cap)
    num_valid:  tokens from here on do not exist (a vocabulary padded to a round number)
    impl:       "reference" is the definition, "xla" keeps the logits of a chunk of rows, "pallas"
                those of a tile; "auto" is "pallas" on a TPU that has room for rows so wide, else
                "xla" where logits get large
    chip:       a TPU (v5e, v5p, v6e, tpu7x) to compile for; None: the one that runs

    Only `loss` is differentiable, to x and table, once; its gradients are computed along with it
    except by "reference", and only if they are asked for.  All other derivatives are 0: those by
    weights and z_loss, and those of the statistics.
    Raises ValueError for shapes or dtypes that do not fit, and for "pallas" without a TPU or
    beyond its width.

    >>> x_RD, table_VD = jnp.ones((2, 4)), jnp.zeros((8, 4))
    >>> found = linear_cross_entropy(x_RD, table_VD, jnp.array([0, 5]), jnp.ones(2))
    >>> print(found.loss.round(4), found.correct)  # 2 ln 8; of equal logits the first is the best
    4.1589 1.0
    """
    arrays = x_RD, table_VD, targets_R, weights_R
    check(*arrays, softcap=softcap, z_loss=z_loss, num_valid=num_valid)
    task = Task(softcap, jnp.asarray(z_loss, jnp.float32), num_valid, None)
    how = choose(impl, chip, x_RD, table_VD)
    arrays = *arrays[:3], weights_R.astype(jnp.float32)
    if how == "reference":
        return reference.linear_cross_entropy(*arrays, task)
    return _fused(*arrays, task.z_loss, task._replace(z_loss=0.0), how)


def forward(
    x_RD: jax.Array,
    table_VD: jax.Array,
    targets_R: jax.Array,
    weights_R: jax.Array,
    task: Task,
    how: str | Config,
) -> CrossEntropy:
    """The loss and statistics alone, without a derivative; for a slice of the vocabulary too.

    task:  task.axis_name is the mesh axis whose devices hold the slices of the table, in order;
           targets and task.num_valid count through the whole vocabulary
    how:   "xla", or the sizes of the TPU kernel
    """
    local, local_targets_R = _localize(task, len(table_VD), targets_R)
    if isinstance(how, Config):
        from pallas_kernels.cross_entropy import tpu  # here: Pallas takes half a second to import

        rows = tpu.statistics(x_RD, table_VD, local_targets_R, local, how)
    else:
        rows = xla.statistics(x_RD, table_VD, local_targets_R, local)
    return sums(rows, targets_R, weights_R, task.z_loss)


def forward_and_gradients(
    x_RD: jax.Array,
    table_VD: jax.Array,
    targets_R: jax.Array,
    weights_R: jax.Array,
    task: Task,
    how: str | Config,
) -> tuple[CrossEntropy, jax.Array, jax.Array]:
    """As `forward`, with the gradients of the loss: dx in the dtype of x, dtable in f32.

    Of a slice of the vocabulary: the whole dx, the slice's dtable.
    """
    local, local_targets_R = _localize(task, len(table_VD), targets_R)
    arrays = x_RD, table_VD, local_targets_R, weights_R, local
    if isinstance(how, Config):
        from pallas_kernels.cross_entropy import tpu

        rows, dx_RD, dtable_VD = tpu.statistics_and_gradients(*arrays, how)
    else:
        rows, dx_RD, dtable_VD = xla.statistics_and_gradients(*arrays)
    return sums(rows, targets_R, weights_R, task.z_loss), dx_RD, dtable_VD


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _fused(x_RD, table_VD, targets_R, weights_R, z_loss, task, how):
    return forward(x_RD, table_VD, targets_R, weights_R, task._replace(z_loss=z_loss), how)


def _fused_forward(x_RD, table_VD, targets_R, weights_R, z_loss, task, how):
    found, dx_RD, dtable_VD = forward_and_gradients(
        x_RD, table_VD, targets_R, weights_R, task._replace(z_loss=z_loss), how
    )
    return found, (dx_RD, dtable_VD.astype(table_VD.dtype))


def _fused_backward(task, how, gradients, cotangents):
    del task, how
    return *scaled(gradients, cotangents), None, None, None


def scaled(gradients: tuple[jax.Array, ...], cotangents: CrossEntropy) -> list[jax.Array]:
    """Gradients of the loss times what comes back for it; the statistics have none."""
    return [(cotangents.loss * g.astype(jnp.float32)).astype(g.dtype) for g in gradients]


_fused.defvjp(_fused_forward, _fused_backward)


def _localize(task: Task, V: int, targets_R: jax.Array) -> tuple[Task, jax.Array]:
    """Targets and end of the vocabulary, counted from the first token of this device's slice."""
    if task.axis_name is None:
        return task, targets_R
    first = jax.lax.axis_index(task.axis_name) * V
    num_valid = None if task.num_valid is None else jnp.clip(task.num_valid - first, 0, V)
    return task._replace(num_valid=num_valid), targets_R - first


def choose(impl: Impl, chip: str | None, x_RD: Shaped, table_VD: Shaped) -> str | Config:
    """What runs: "reference", "xla", or the sizes of the TPU kernel.

    Raises ValueError for an unknown impl or chip, and for "pallas" where it cannot run.
    """
    if impl not in IMPLS:
        raise ValueError(f"unknown cross-entropy impl {impl!r}; allowed: {', '.join(IMPLS)}")
    if chip is not None and chip not in CHIPS:
        raise ValueError(f"unknown chip {chip!r}; allowed: {', '.join(CHIPS)}")
    chip, (R, D), V = chip or running_chip(), x_RD.shape, len(table_VD)
    if impl == "auto" and chip is None:
        return "reference" if R * V <= WHOLE_LOGITS else "xla"
    if impl in ("reference", "xla"):
        return impl
    if chip is None:
        raise ValueError("cross-entropy impl 'pallas' needs a TPU: v5e, v5p, v6e or tpu7x")
    item_bytes = x_RD.dtype.itemsize, table_VD.dtype.itemsize
    if (widest := max_width(chip, *item_bytes)) >= D:
        return config(chip, R, V, D, *item_bytes)
    if impl == "auto":
        return "xla"
    raise ValueError(
        f"x has a width of {D}; cross-entropy impl 'pallas' on {chip} allows up to {widest} of "
        f"{x_RD.dtype}, with a table of {table_VD.dtype}"
    )


def check(
    x_RD: jax.Array,
    table_VD: jax.Array,
    targets_R: jax.Array,
    weights_R: jax.Array,
    *,
    softcap: float | None = None,
    z_loss: jax.Array | float = 0.0,
    num_valid: int | None = None,
) -> None:
    """Raises ValueError, naming the argument, for what linear_cross_entropy cannot take."""
    floats = (jnp.bfloat16, jnp.float32)
    if x_RD.ndim != 2 or table_VD.ndim != 2 or x_RD.shape[1] != table_VD.shape[1]:
        raise ValueError(f"x {x_RD.shape} and table {table_VD.shape} must be (R, D) and (V, D)")
    for name, array in (("x", x_RD), ("table", table_VD)):
        if array.dtype not in floats:
            raise ValueError(f"{name} is {array.dtype}; allowed: bfloat16, float32")
        if 0 in array.shape:
            raise ValueError(f"{name} {array.shape} has nothing in it")
    for name, array in (("targets", targets_R), ("weights", weights_R)):
        if array.shape != x_RD.shape[:1]:
            raise ValueError(f"{name} {array.shape} must be {x_RD.shape[:1]}, one for each row")
    if not jnp.issubdtype(targets_R.dtype, jnp.integer):
        raise ValueError(f"targets are {targets_R.dtype}; allowed: integers")
    if softcap is not None and not (_is_number(softcap) and 0 < softcap < math.inf):
        raise ValueError(f"softcap is {softcap!r}; allowed: None, or a finite number above 0")
    if jnp.shape(z_loss) != ():
        raise ValueError(f"z_loss is {z_loss!r}; allowed: a number")
    is_int = isinstance(num_valid, int | np.integer) and not isinstance(num_valid, bool)
    if num_valid is not None and not (is_int and 0 < num_valid <= len(table_VD)):
        raise ValueError(f"num_valid is {num_valid!r}; allowed: 1 to {len(table_VD)}, or None")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
