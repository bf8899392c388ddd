# SPDX-License-Identifier: Apache-2.0
"""Attention on the GPU of this machine beside the public kernels; measured, never predicted.

Times are the GPU's own (CUPTI: the sum over the kernels that a call launches), medians.  Each row
is checked first, output and gradients, against the definition in f32.  Work is counted as the
mask needs it: 2 multiplications and additions per pair of positions that see each other, and width.

Legend: B batch  T positions  N query heads  K kv heads  H width of q and k  V width of v
        R queries that are checked
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.errors import ConfigError
from jaxlm.telemetry.readable import aligned
from pallas_kernels.attention import api, reference
from pallas_kernels.attention.specs import MODELS, Spec
from pallas_kernels.tuning.chips import GPUS, running_gpu

REPEATS, CHECKED, LARGEST_ERROR = 25, 128, 2.0**-6  # bf16 rounds by 2^-9, several times
HEADER = (
    "shape", "kernel", "direction", "measured ms", "TFLOP/s", "/ cuDNN", "relative error",
)  # fmt: skip
FAILURES = ValueError, TypeError, AssertionError, NotImplementedError, RuntimeError  # of a rival
Attention = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel at one shape in one direction; ms is None where it does not run or is wrong."""

    shape: str
    kernel: str
    direction: str
    ms: float | None
    tflops: float = 0.0
    error: float = 0.0
    reason: str = ""


def bench_gpu(progress: Callable[[str, float | None, str], None]) -> list[Row]:
    """All kernels at all shapes.  Raises ConfigError without a GPU that has a kernel."""
    if running_gpu() is None:
        raise ConfigError(
            f"bench kernels --gpu measures on an NVIDIA GPU ({', '.join(GPUS)} or their like); "
            f"this is {jax.devices()[0].device_kind}"
        )
    todo = [(name, kernel) for name in MODELS for kernel in KERNELS]
    rows = []
    for i, (name, kernel) in enumerate(todo):
        progress("measure kernels", i / len(todo), f"{kernel}, {name}")
        rows += measure(name, MODELS[name], kernel, time_on_gpu)
    progress("measure kernels", 1.0, "")
    return rows


def measure(name: str, spec: Spec, kernel: str, seconds_of: Any) -> list[Row]:
    """The rows of one kernel at one shape, forward and backward; times by `seconds_of`."""
    arrays = draw(spec)
    q, k, v, d_out, ids = arrays
    try:
        f = KERNELS[kernel](spec, ids)
        forward = jax.jit(f)
        _, vjp = jax.jit(lambda *a: jax.vjp(f, *a))(q, k, v)
        backward = jax.jit(lambda vjp, d_out: vjp(d_out))
        errors = check(spec, arrays, forward(q, k, v), lambda d_out: backward(vjp, d_out))
        times = seconds_of(forward, q, k, v), seconds_of(backward, vjp, d_out)
    except FAILURES as failure:
        reason = (str(failure).strip().splitlines() or ["no message"])[0][:80]
        return [Row(name, kernel, d, None, reason=reason) for d in ("forward", "backward")]
    rows = []
    for direction, seconds, error, work in zip(
        ("forward", "backward"), times, errors, flops(spec, ids), strict=True
    ):
        if not error < LARGEST_ERROR:
            rows.append(Row(name, kernel, direction, None, reason=f"wrong: error {error:.1e}"))
        else:
            rows.append(Row(name, kernel, direction, seconds * 1e3, work / seconds * 1e-12, error))
    return rows


def draw(spec: Spec) -> tuple[jax.Array, ...]:
    """q, k, v, d_out and segment ids; documents have random lengths."""
    rng = np.random.default_rng(0)
    normal = lambda n, width: jnp.asarray(rng.normal(size=(spec.B, spec.T, n, width)), spec.dtype)
    ids = np.cumsum(rng.random((spec.B, spec.T)) < 8 / spec.T, axis=1)
    widths = (spec.N, spec.H), (spec.K, spec.H), (spec.K, spec.value_width)
    q, k, v = (normal(*size) for size in widths)
    return q, k, v, normal(spec.N, spec.value_width), jnp.asarray(ids, jnp.int32)


def time_on_gpu(f: Callable[..., Any], *arrays: Any) -> float:
    from jax.experimental.mosaic.gpu import profiler

    _, milliseconds = profiler.measure(f, iterations=REPEATS)(*arrays)
    return statistics.median(milliseconds or []) / 1e3


def check(
    spec: Spec, arrays: tuple[jax.Array, ...], out: jax.Array, backward: Callable[..., Any]
) -> tuple[float, float]:
    """Relative errors of out and of the worst gradient, by some queries in the middle.

    Their gradients are all there are if d_out is zero elsewhere.
    """
    q, k, v, d_out, ids = arrays
    some = slice(spec.T // 2 - 37, spec.T // 2 - 37 + CHECKED)
    d_some_BRNV = d_out[:, some].astype(jnp.float32)
    dq, dk, dv = backward(jnp.zeros_like(d_out).at[:, some].set(d_out[:, some]))

    def definition(q_BRNH: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return reference.attention(
            q_BRNH, k, v, scale=spec.H**-0.5, causal=spec.causal, window=spec.window,
            segment_ids=(ids[:, some], ids) if spec.has_ids else None, q_offset=some.start,
        )  # fmt: skip

    with jax.default_matmul_precision("highest"):
        wide = [x.astype(jnp.float32) for x in (q[:, some], k, v)]
        want, vjp = jax.vjp(jax.jit(definition), *wide)
        wants = vjp(d_some_BRNV)
    pairs = zip((dq[:, some], dk, dv), wants, strict=True)
    return _error(out[:, some], want), max(_error(*pair) for pair in pairs)


def _error(found: jax.Array, want: jax.Array) -> float:
    return float(jnp.linalg.norm(found.astype(jnp.float32) - want) / jnp.linalg.norm(want))


def flops(spec: Spec, ids_BT: jax.Array) -> tuple[float, float]:
    """Of the products that the mask needs: two forward, five backward."""
    starts_BT = np.zeros(ids_BT.shape, int)  # where each position's document begins
    if spec.has_ids:
        ids = np.asarray(ids_BT)
        is_first = np.diff(ids, axis=1, prepend=-1) != 0
        starts_BT = np.maximum.accumulate(np.where(is_first, np.arange(spec.T), 0), axis=1)
    seen_BT = np.arange(spec.T) + 1 - starts_BT
    if spec.window is not None:
        seen_BT = np.minimum(seen_BT, spec.window)
    pairs = float(spec.N * seen_BT.sum())
    H, V = spec.H, spec.value_width
    return 2 * pairs * (H + V), 2 * pairs * (3 * H + 2 * V)


def _ours(spec: Spec, ids: jax.Array) -> Attention:
    segment_ids = (ids, ids) if spec.has_ids else None
    return lambda q, k, v: api.attention(
        q, k, v, causal=spec.causal, window=spec.window, segment_ids=segment_ids, impl="pallas"
    )


def _cudnn(spec: Spec, ids: jax.Array) -> Attention:
    if spec.has_ids:
        raise ValueError("has no packed documents without a mask of T x T")
    window = None if spec.window is None else (spec.window - 1, 0)
    return lambda q, k, v: jax.nn.dot_product_attention(
        q, k, v, is_causal=spec.causal, local_window_size=window, implementation="cudnn"
    )


def _jax_pallas(spec: Spec, ids: jax.Array) -> Attention:
    if spec.window is not None or spec.K != spec.N:
        raise ValueError("has no window and no grouped heads")
    from jax.experimental.pallas.ops.gpu.attention import mha

    segment_ids = ids if spec.has_ids else None
    return lambda q, k, v: mha(q, k, v, segment_ids, sm_scale=spec.H**-0.5, causal=spec.causal)


KERNELS: dict[str, Callable[[Spec, jax.Array], Attention]] = {
    "ours": _ours,
    "cuDNN": _cudnn,
    "jax Pallas": _jax_pallas,
}


def table(rows: list[Row]) -> Iterator[str]:
    """Lines for people, columns aligned."""
    cudnn = {(r.shape, r.direction): r.ms for r in rows if r.kernel == "cuDNN"}
    cells = [HEADER]
    for row in rows:
        name = row.shape, row.kernel, row.direction
        if row.ms is None:
            cells.append((*name, "-", "-", "-", row.reason))
            continue
        rival = cudnn.get((row.shape, row.direction))
        speed = f"{rival / row.ms:.2f}x" if rival else "-"
        cells.append((*name, f"{row.ms:.3f}", f"{row.tflops:.0f}", speed, f"{row.error:.1e}"))
    return aligned(cells)
