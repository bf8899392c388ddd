# SPDX-License-Identifier: Apache-2.0
"""FLOPs and time of Pallas kernels in a program, from their names and the shapes of their operands.

The compiler knows neither: a kernel is a custom call to it.

Time is FLOPs over the rate that the compiler's own schedule of the kernel, compiled alone, comes to
(`jaxlm bench kernels`; docs/kernels.md has the figures behind the table).

Rows of experts lie in a buffer for the worst case, and the kernel leaves out those that did not come
(docs/moe.md).  How many do is data: here, as many as to every other device.

Legend: B batch  N query heads  T queries  H head width  R rows  D, F widths  V vocabulary
"""

import dataclasses
import re

from jaxlm.model.accounting import mean_keys
from jaxlm.model.config import ModelConfig
from jaxlm.plan.hlo import Array, Computation, Op

TARGETS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu")

# Share of the bf16 peak, by kernel: attention at B 4, 16 heads of 128, T 4096, causal, any input;
# cross-entropy at 8,192 x 4,096 x 128,256; grouped products at Mixtral's sizes.  tpu7x stands in
# v6e's place where it was not counted, and v5e in v5p's: their matrix units are of one size.
RATES = {
    "attention_forward": {"v5e": 0.76, "v5p": 0.76, "v6e": 0.348, "tpu7x": 0.332},
    "attention_backward": {"v5e": 0.94, "v5p": 0.94, "v6e": 0.450, "tpu7x": 0.445},
    "linear_cross_entropy": {"v5e": 0.96, "v5p": 0.96, "v6e": 0.80, "tpu7x": 0.80},
    "grouped_matmul": {"v5e": 0.85, "v5p": 0.85, "v6e": 0.80, "tpu7x": 0.80},
    "grouped_matmul_dw": {"v5e": 0.85, "v5p": 0.85, "v6e": 0.75, "tpu7x": 0.75},
}
EXACT_PASSES = 6  # of our kernels' f32 products, which are of highest precision (products.py)
HEAD_WIDTH = 128  # of the attention shapes; narrower heads leave the matrix unit as much idle


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """One call: FLOPs are None for a kernel that is not ours."""

    kernel: str
    flops: float | None
    rate: float | None  # share of the chip's peak


def kernel_name(op: Op) -> str | None:
    """The Pallas kernel that a custom call calls; None if it calls none."""
    if op.kind != "custom-call" or op.text("custom_call_target") not in TARGETS:
        return None
    return re.sub(r"[.\d]+$|\.clone.*$", "", op.name)


def kernel_call(
    computation: Computation, op: Op, model: ModelConfig, chip: str, sharing: int = 1
) -> KernelCall | None:
    """What a custom call does if it is a Pallas kernel; None if it is not one.

    sharing: devices that share the experts, so the part of a buffer's rows that come, inverted
    """
    kernel = kernel_name(op)
    if kernel is None:
        return None
    given = [a for name in op.operands for a in computation.arrays(name)]
    flops, width = _flops(kernel, given, op, model)
    if flops is not None and kernel.startswith("grouped_matmul"):
        flops /= sharing
    rate = RATES.get(kernel, {}).get(chip)
    if rate is not None and kernel.startswith("attention"):
        rate *= min(1.0, width / HEAD_WIDTH)
    if rate is not None and _is_exact(given):
        rate /= EXACT_PASSES
    return KernelCall(kernel, flops, rate)


def _is_exact(given: list[Array]) -> bool:
    """Whether a kernel multiplies in f32: of its matrices none is narrower."""
    matrices = [a for a in given if len(a.sizes) >= 2 and a.sizes[-2] > 1]
    return not any(a.dtype in ("bf16", "f16") for a in matrices)


def _flops(kernel: str, given: list[Array], op: Op, model: ModelConfig) -> tuple[float | None, int]:
    if kernel.startswith("attention"):
        return _attention(kernel, given, op, model)
    if kernel == "linear_cross_entropy":
        return _cross_entropy(given, op), 0
    if kernel.startswith("grouped_matmul"):
        tables = [a for a in (*given, *op.arrays) if len(a.sizes) == 3 and a.dtype != "s32"]
        rows = [a for a in given if len(a.sizes) == 2 and a.dtype != "s32"]
        if tables and rows:
            return 2.0 * rows[0].sizes[0] * tables[0].sizes[1] * tables[0].sizes[2], 0
    return None, 0


def _attention(
    kernel: str, given: list[Array], op: Op, model: ModelConfig
) -> tuple[float | None, int]:
    """Products over the pairs that the mask shows; packed documents count as one."""
    backward = "backward" in kernel
    wide = [a for a in given if a.dtype in ("bf16", "f16", "f32") and len(a.sizes) >= 3]
    queries = [a for a in wide if a.sizes[-2] > 1]
    if not queries:
        return None, 0
    *heads, T, H = queries[0].sizes
    N = 1
    for n in heads:
        N *= n
    pairs = N * T * mean_keys(T, layer_window(op, model))
    products = {"attention_backward_dq": 3, "attention_backward_dkv": 4}.get(
        kernel, 5 if backward else 2
    )
    return 2.0 * pairs * H * products, H


def layer_window(op: Op, model: ModelConfig) -> int | None:
    """The window of the layer that an operation belongs to, by its path in the model."""
    match = re.search(r"block_(\d+)", op.attributes)
    kind = model.layer_pattern[int(match[1])] if match else "full"
    return model.window if kind == "local" else None


def _cross_entropy(given: list[Array], op: Op) -> float | None:
    """One product of rows and table for the statistics, two for the gradients.

    Gradients need the logits of the chunk before again, but for the tiles of it that are kept.
    """
    tables = [a for a in given if len(a.sizes) == 2 and a.sizes[0] > 1 and a.sizes[1] > 1]
    rows = [a for a in given if len(a.sizes) == 3 and a.dtype in ("bf16", "f16", "f32")]
    if not tables or not rows:
        return None
    V, D = tables[0].sizes
    has_statistics = any(a.dtype == "s32" for a in op.arrays)
    has_gradients = any(a.dtype == "f32" and a.sizes[-2:] == (V, D) for a in op.arrays)
    kept = [
        a
        for a in (*op.arrays, *given)
        if a.dtype != "f32" and len(a.sizes) == 3 and a.sizes[-1] != D
    ]
    per_chunk = [
        a.sizes[-1] for a in (*op.arrays, *given) if a.dtype == "s32" and len(a.sizes) >= 2
    ]
    R = per_chunk[0] if per_chunk else rows[0].sizes[1]
    products = (1.0 if has_statistics else 0.0) + (2.0 if has_gradients else 0.0)
    if has_gradients:
        share = max((a.sizes[1] for a in kept if a.sizes[-1] == R), default=0) / V
        products += max(0.0, 1.0 - share)
    return products * 2.0 * R * V * D
