# SPDX-License-Identifier: Apache-2.0
"""What attention takes.  All else is a ValueError of one line: argument, its value, what is allowed.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H width of q and k
        V width of v
"""

import math
from numbers import Integral, Number, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.masks import Start
from pallas_kernels.tuning.chips import GPUS, KINDS, running_chip, running_gpu

CHIPS = (*dict.fromkeys(chip for _, chip in KINDS), *GPUS)
DTYPES = ("float16", "bfloat16", "float32")  # sums are in f32: float64 would promise more

# Kernels add positions and windows in int32: two offsets, as many positions and a window fit.
WIDEST_WINDOW = 2**30
FARTHEST = 2**28


def chip_or_running(chip: str | None) -> str | None:
    """The TPU or GPU to compile for; None where none runs."""
    if chip is not None and chip not in CHIPS:
        raise ValueError(f"unknown chip {chip!r}; allowed: {', '.join(CHIPS)}")
    return chip or running_chip() or running_gpu()


def check_options(
    scale: float | None, causal: bool, window: int | None, softcap: float | None
) -> None:
    """All are known when traced."""
    if not isinstance(causal, bool | np.bool_):
        raise ValueError(f"causal is {_shown(causal)}; allowed: True or False")
    if scale is not None and not (_is(scale, Real) and math.isfinite(scale)):
        raise ValueError(f"scale is {_shown(scale)}; allowed: None, or a finite number")
    if window is not None and not (_is(window, Integral) and 1 <= window <= WIDEST_WINDOW):
        allowed = f"None, or 1 and more, to {WIDEST_WINDOW}"
        raise ValueError(f"window is {_shown(window)}; allowed: {allowed}")
    if softcap is not None and not (_is(softcap, Real) and 0 < softcap < math.inf):
        raise ValueError(f"softcap is {_shown(softcap)}; allowed: None, or more than 0 and finite")


def check_arrays(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKV: jax.Array,
    segment_ids: tuple[jax.Array, jax.Array] | None,
    sinks_N: jax.Array | None,
    logit_bound: jax.Array | float | None,
) -> None:
    """Shapes, which may have no rows, queries or keys, and dtypes of all but q, k and v."""
    for name, x in (("q_BTNH", q_BTNH), ("k_BSKH", k_BSKH), ("v_BSKH", v_BSKV)):
        check_heads(name, x)
    B, T, N, H = q_BTNH.shape
    S, K, V = *k_BSKH.shape[1:3], v_BSKV.shape[3]
    if N % K:
        raise ValueError(f"{N} query heads are no multiple of {K} kv heads")
    check_array("k_BSKH", k_BSKH, (B, S, K, H))
    check_array("v_BSKH", v_BSKV, (B, S, K, V))
    if segment_ids is not None:
        _check_ids(segment_ids, (B, T), (B, S))
    if sinks_N is not None:
        check_array("sinks_N", sinks_N, (N,), "floating point")
    if logit_bound is not None:
        _check_bound(logit_bound, (B, N))


def _check_ids(segment_ids: Any, *shapes: tuple[int, int]) -> None:
    is_sequence = isinstance(segment_ids, tuple | list)
    if not is_sequence or len(segment_ids) != 2:
        found = _shown(segment_ids) + (f" of {len(segment_ids)}" if is_sequence else "")
        raise ValueError(f"segment_ids is {found}; allowed: None, or those of queries and of keys")
    for i, shape in enumerate(shapes):
        check_array(f"segment_ids[{i}]", segment_ids[i], shape, "integers")


def _check_bound(bound: Any, shape: tuple[int, int]) -> None:
    """Of an array the values are known at run time only."""
    if not isinstance(bound, jax.Array | np.ndarray):
        if not (_is(bound, Real) and bound >= 0):
            raise ValueError(f"logit_bound is {_shown(bound)}; allowed: None, or 0 and more")
    elif bound.shape not in ((), shape):
        raise ValueError(f"logit_bound is {bound.shape}; allowed: a scalar or {shape}")
    else:
        _check_kind("logit_bound", bound, "floating point")


def checked_offsets(q_offset: Start, k_offset: Start, B: int) -> tuple[Start, Start]:
    """Ints where they are known when traced, or else arrays of int32."""
    return _offset("q_offset", q_offset, B), _offset("k_offset", k_offset, B)


def _offset(name: str, offset: Start, B: int) -> Start:
    if isinstance(offset, jax.Array | np.ndarray):
        if offset.shape not in ((), (1,), (B,)):
            raise ValueError(f"{name} is {offset.shape}; allowed: a scalar or ({B},)")
        _check_kind(name, offset, "integers")
        return jnp.asarray(offset, jnp.int32)
    if not _is(offset, Integral) or abs(offset) > FARTHEST:
        allowed = f"whole numbers from {-FARTHEST} to {FARTHEST}, or an array of integers"
        raise ValueError(f"{name} is {_shown(offset)}; allowed: {allowed}")
    return int(offset)


def check_dtypes(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKV: jax.Array) -> None:
    """The same for all three, as the products of every implementation have it."""
    names = [x.dtype.name for x in (q_BTNH, k_BSKH, v_BSKV)]
    if len({*names}) > 1 or names[0] not in DTYPES:
        allowed = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}, one for all"
        raise ValueError(f"q_BTNH, k_BSKH and v_BSKH are {', '.join(names)}; allowed: {allowed}")


def check_heads(name: str, x: Any) -> None:
    """Rows, positions, heads and their width, of which only rows and positions may be none."""
    _check_is_array(name, x)
    if len(x.shape) != 4:
        raise ValueError(f"{name} is {x.shape}; allowed: four dimensions")
    if 0 in x.shape[2:]:
        raise ValueError(f"{name} is {x.shape}; allowed: heads, at least 1 of width 1")


def check_array(name: str, x: Any, shape: tuple[int, ...], kind: str | None = None) -> None:
    """An array of this shape; kind: "integers" or "floating point"."""
    _check_is_array(name, x)
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} is {tuple(x.shape)}; allowed: {shape}")
    if kind is not None:
        _check_kind(name, x, kind)


def _check_kind(name: str, x: Any, kind: str) -> None:
    if not jnp.issubdtype(x.dtype, jnp.integer if kind == "integers" else jnp.floating):
        raise ValueError(f"{name} is {x.dtype}; allowed: {kind}")


def _check_is_array(name: str, x: Any) -> None:
    if not isinstance(x, jax.Array | np.ndarray):
        raise ValueError(f"{name} is {_shown(x)}; allowed: an array")


def _is(x: Any, kind: type) -> bool:
    """Whether x is such a number; Python counts True among them."""
    return isinstance(x, kind) and not isinstance(x, bool)


def _shown(x: Any) -> str:
    """In one line, whatever it is."""
    if isinstance(x, jax.core.Tracer):
        return "a traced array"
    if isinstance(x, jax.Array | np.ndarray):
        return "an array"
    return repr(x) if isinstance(x, Number | str | None) else f"a {type(x).__name__}"
