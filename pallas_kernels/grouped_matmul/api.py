# SPDX-License-Identifier: Apache-2.0
"""Grouped matmul: rows sorted by expert times the matrices of the experts.

Legend: R rows, sorted by group  E groups (experts)  D width of x  F width of y
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.grouped_matmul import reference, xla
from pallas_kernels.tuning.chips import running_chip
from pallas_kernels.tuning.grouped_matmul import CHIPS, max_width, product_blocks, weights_blocks

Impl = Literal["auto", "reference", "xla", "pallas"]
IMPLS = ("auto", "reference", "xla", "pallas")


def grouped_matmul(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    sizes_E: jax.Array,
    *,
    impl: Impl = "auto",
    chip: str | None = None,
) -> jax.Array:
    """y_r = x_r w_e for the rows r of group e: (R, F) in the dtype of x, sums in f32.

    x_RD:     bf16 or f32, the rows of group 0 first, then those of group 1, ...
    w_EDF:    in the dtype of x
    sizes_E:  int, rows of each group; may be 0.  Their sum is at most R: rows beyond give zeros.
              Where they are known only to the device, negative ones count as 0, and groups end
              where the rows do; where they are known here, ValueError
    impl:     "reference" is the definition, "xla" has no kernel; "auto" is "pallas" on a TPU
              that has room for matrices so wide, else "xla"
    chip:     a TPU (v5e, v5p, v6e, tpu7x) to compile for; None: the one that runs

    Differentiable with respect to x and w; the matrix of a group without rows gets zeros.
    Raises ValueError for shapes or dtypes that do not fit, and for "pallas" without a TPU or
    beyond its width.

    >>> x_RD, w_EDF = jnp.ones((3, 2)), jnp.array([1.0, 10.0])[:, None, None] * jnp.eye(2)
    >>> print(grouped_matmul(x_RD, w_EDF, jnp.array([1, 1])))
    [[ 1.  1.]
     [10. 10.]
     [ 0.  0.]]
    """
    _check(x_RD, w_EDF, sizes_E)
    _, D, F = w_EDF.shape
    how = choose(impl, chip, D, F, x_RD.dtype.itemsize)
    sizes_E = _bounded(sizes_E, len(x_RD))
    if how == "reference":
        return reference.grouped_matmul(x_RD, w_EDF, sizes_E)
    if how == "xla":
        return xla.grouped_matmul(x_RD, w_EDF, sizes_E)
    return _by_kernel(x_RD, w_EDF, sizes_E, how)


def _bounded(sizes_E: jax.Array, R: int) -> jax.Array:
    """int32 sizes that no schedule leaves the rows by, whatever was given."""
    stop_E = jnp.cumsum(jnp.maximum(sizes_E.astype(jnp.int32), 0))
    return jnp.diff(jnp.minimum(stop_E, R), prepend=0)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _by_kernel(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, chip: str) -> jax.Array:
    (E, D, F), R, item = w_EDF.shape, len(x_RD), x_RD.dtype.itemsize
    return _kernels().product(x_RD, w_EDF, sizes_E, product_blocks(chip, R, D, F, E, item))


def _forward(x_RD, w_EDF, sizes_E, chip):
    return _by_kernel(x_RD, w_EDF, sizes_E, chip), (x_RD, w_EDF, sizes_E)


def _backward(chip, saved, dy_RF):
    x_RD, w_EDF, sizes_E = saved
    (E, D, F), R, item = w_EDF.shape, len(x_RD), x_RD.dtype.itemsize
    dx_blocks = product_blocks(chip, R, F, D, E, item, is_flipped=True)
    dx_RD = _kernels().product(dy_RF, w_EDF, sizes_E, dx_blocks, is_flipped=True)
    dw_blocks = weights_blocks(chip, D, F, item)
    dw_EDF = _kernels().weights_gradient(x_RD, dy_RF, sizes_E, w_EDF.dtype, dw_blocks)
    return dx_RD, dw_EDF, None


_by_kernel.defvjp(_forward, _backward)


def _kernels() -> Any:
    """The module, imported here: Pallas takes half a second to import."""
    from pallas_kernels.grouped_matmul import tpu

    return tpu


def choose(impl: Impl, chip: str | None, D: int, F: int, item_bytes: int) -> str:
    """ "reference", "xla", or the chip whose kernel runs.  Raises ValueError as grouped_matmul.

    F counts as D does: the gradient by x contracts it.
    """
    if impl not in IMPLS:
        raise ValueError(f"unknown grouped matmul impl {impl!r}; allowed: {', '.join(IMPLS)}")
    if chip is not None and chip not in CHIPS:
        raise ValueError(f"unknown chip {chip!r}; allowed: {', '.join(CHIPS)}")
    chip = chip or running_chip()
    if impl in ("reference", "xla"):
        return impl
    if chip is None and impl == "pallas":
        raise ValueError("grouped matmul impl 'pallas' needs a TPU: v5e, v5p, v6e or tpu7x")
    if chip is None:
        return "xla"
    for width, other in ((D, F), (F, D)):
        if width <= (widest := max_width(chip, other, item_bytes)):
            continue
        if impl == "auto":
            return "xla"
        raise ValueError(
            f"w has a width of {width}; grouped matmul impl 'pallas' on {chip} allows up to "
            f"{widest} of {8 * item_bytes} bits"
        )
    return chip


def _check(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> None:
    if x_RD.ndim != 2 or w_EDF.ndim != 3 or x_RD.shape[1] != w_EDF.shape[1]:
        raise ValueError(f"x {x_RD.shape} and w {w_EDF.shape} must be (R, D) and (E, D, F)")
    if sizes_E.shape != w_EDF.shape[:1]:
        raise ValueError(f"sizes {sizes_E.shape} must be {w_EDF.shape[:1]}, one for each group")
    if not jnp.issubdtype(sizes_E.dtype, jnp.integer):
        raise ValueError(f"sizes are {sizes_E.dtype}; allowed: integers")
    if not isinstance(sizes_E, jax.core.Tracer):
        sizes, R = np.asarray(sizes_E).astype(np.int64), len(x_RD)
        if sizes.min(initial=0) < 0 or sizes.sum() > R:
            raise ValueError(f"sizes are {sizes.tolist()}; allowed: none below 0, {R} in all")
    if x_RD.dtype not in (jnp.bfloat16, jnp.float32) or w_EDF.dtype != x_RD.dtype:
        raise ValueError(
            f"x is {x_RD.dtype} and w {w_EDF.dtype}; allowed: both bfloat16, both float32"
        )
    if 0 in x_RD.shape or 0 in w_EDF.shape:
        raise ValueError(f"x {x_RD.shape} or w {w_EDF.shape} has nothing in it")
