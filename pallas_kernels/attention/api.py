# SPDX-License-Identifier: Apache-2.0
"""Attention: the one function that models call, in bf16, f16 or f32.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H head width
"""

import functools
from typing import Any, Literal, get_args

import jax

from pallas_kernels.attention import reference, xla
from pallas_kernels.attention.check import (
    check_arrays,
    check_dtypes,
    check_options,
    checked_offsets,
    chip_or_running,
)
from pallas_kernels.attention.masks import Mask, Start
from pallas_kernels.tuning.attention_gpu import WIDEST
from pallas_kernels.tuning.chips import GPUS

Impl = Literal["auto", "reference", "xla", "pallas"]

FEWEST_QUERIES = 128  # for "auto": with fewer, as in decoding, the kernel's blocks are mostly empty


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
    softcap: float | None = None,
    sinks_N: jax.Array | None = None,
    q_offset: Start = 0,
    k_offset: Start = 0,
    logit_bound: jax.Array | float | None = None,
    return_lse: bool = False,
    impl: Impl = "auto",
    chip: str | None = None,
) -> Any:
    """softmax(scale * q k^T) v with the masks below, (B, T, N, width of v) in q's dtype.

    scale:        None means 1/sqrt(H)
    causal:       a query sees no keys after its own position
    window:       a query sees the newest `window` keys only, its own position included; to 2^30
    segment_ids:  ids of queries (B, T) and keys (B, S); a query sees keys of its own id
    softcap:      scores become cap * tanh(scores / cap)
    sinks_N:      one learned logit per head that takes weight and gives nothing; -inf for none
    q_offset, k_offset:  positions of the first query and key, even at run time: to 2^28, scalar or (B,)
    logit_bound:  upper bound of |scale * q k|, scalar or (B, N), if the caller knows one (queries
                  and keys of norm 1 give `scale`); the TPU kernel drops the running maximum where
                  it is low enough.  None: |q| |k| at their largest.  A wrong bound overflows.
    return_lse:   return (out, lse), lse (B, N, T) in f32: the log of the sum of the exponentials of
                  all scores and sinks, in nats; -inf where there is none.  See merge.py.
    impl:         "reference" is the definition, "xla" visits only the blocks that the mask can
                  need, "pallas" is the kernel, "auto" takes the last of these that applies
    chip:         the TPU or GPU to compile for, of check.CHIPS; None: the one that runs
    Raises ValueError for arguments that do not fit, or an impl that cannot run here.
    """
    check_arrays(q_BTNH, k_BSKH, v_BSKH, segment_ids, sinks_N, logit_bound)
    check_options(scale, causal, window, softcap)
    q_offset, k_offset = checked_offsets(q_offset, k_offset, len(q_BTNH))
    chip = chip_or_running(chip)
    scale = q_BTNH.shape[-1] ** -0.5 if scale is None else float(scale)
    distance = q_offset - k_offset
    can_skip = xla.applies(q_BTNH, k_BSKH, causal=causal, q_offset=distance)
    impl = choose(impl, why_not_pallas(chip, q_BTNH, k_BSKH, v_BSKH), q_BTNH.shape[1], can_skip)
    check_dtypes(q_BTNH, k_BSKH, v_BSKH)
    if impl == "pallas":
        kernels = kernels_of(chip)
        options = kernels.Options(Mask(causal, window), scale, softcap, chip or "", False)
        out, lse = kernels.attention(
            q_BTNH, k_BSKH, v_BSKH, sinks_N, segment_ids, q_offset, k_offset, logit_bound, options
        )
    else:
        with_lse = functools.partial(reference.attention, return_lse=True)
        run: Any = xla.attention if impl == "xla" else with_lse
        out, lse = run(
            q_BTNH, k_BSKH, v_BSKH, causal=causal, window=window, segment_ids=segment_ids,
            q_offset=distance, scale=scale, softcap=softcap, sinks_N=sinks_N,
        )  # fmt: skip
    return (out, lse) if return_lse else out


def choose(impl: Impl, why_not_pallas: str | None, num_queries: int, can_skip: bool) -> Impl:
    """What runs.  Raises ValueError for an unknown impl, or one that was asked for and cannot."""
    if impl not in get_args(Impl):
        raise ValueError(f"unknown attention impl {impl!r}; allowed: {', '.join(get_args(Impl))}")
    if impl == "pallas" and why_not_pallas is not None:
        raise ValueError(f"attention impl 'pallas' cannot run: {why_not_pallas}")
    if impl != "auto":
        return impl
    if why_not_pallas is None and num_queries >= FEWEST_QUERIES:
        return "pallas"
    return "xla" if can_skip else "reference"


def kernels_of(chip: str | None) -> Any:
    """The module, imported here: Pallas takes half a second to import."""
    if chip in GPUS:
        from pallas_kernels.attention import gpu

        return gpu
    from pallas_kernels.attention import tpu

    return tpu


def why_not_pallas(
    chip: str | None, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array
) -> str | None:
    """Why the kernel cannot run here; None if it can."""
    dtypes = {x.dtype.name for x in (q_BTNH, k_BSKH, v_BSKH)}
    allowed = ["float16"] * (chip in GPUS) + ["bfloat16", "float32"]
    if len(dtypes) > 1 or not dtypes <= {*allowed}:
        names, choices = ", ".join(sorted(dtypes)), " or ".join(allowed)
        return f"q, k and v are {names}; allowed: {choices}, one for all"
    if 0 in (*q_BTNH.shape, *k_BSKH.shape, *v_BSKH.shape):
        return f"an array is empty: {q_BTNH.shape}, {k_BSKH.shape}, {v_BSKH.shape}"
    if chip is None:
        return (
            f"it is for TPUs v5e, v5p, v6e and tpu7x and GPUs {', '.join(GPUS)} and their like; "
            f"the backend is {jax.default_backend()}"
        )
    if chip in GPUS and max(q_BTNH.shape[3], v_BSKH.shape[3]) > WIDEST:
        return f"heads are {q_BTNH.shape[3]} and {v_BSKH.shape[3]} wide; allowed: to {WIDEST}"
    return None
