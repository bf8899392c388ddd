# SPDX-License-Identifier: Apache-2.0
"""FLOPs and time of the Pallas kernels in MaxText's programs, counted as jaxlm counts its own.

Attention is jax's splash: 2 products over the pairs that the mask shows forward, 3 for dq and 4 for dk
and dv where two kernels share the backward pass, 5 where one has it all.  Experts are megablox.

Rates are those of the compiler's static schedules of the same kernels (docs/kernels.md), each at the
best of the block sizes tried there, which are not always the blocks that a program has: in MaxText's
favour.
"""

from jaxlm.model.accounting import mean_keys
from jaxlm.plan.hlo import Computation, Op
from jaxlm.plan.kernels import RATES as OURS
from jaxlm.plan.kernels import KernelCall, kernel_name

# Shares of the bf16 peak.  Splash at B 4, 16 heads of 128, T 4096, causal, from these milliseconds of
# v5p, v6e, tpu7x: forward 1.124, 1.465, 1.272; dq 1.318, 1.594, 1.351; dk and dv 1.743, 2.025, 1.608;
# all three 2.250, 2.567, 2.077; forward is 275 GFLOP.
SPLASH = {
    "fwd": {"v5p": 0.533, "v6e": 0.204, "tpu7x": 0.187},
    "dq": {"v5p": 0.682, "v6e": 0.282, "tpu7x": 0.265},
    "dkv": {"v5p": 0.687, "v6e": 0.296, "tpu7x": 0.296},
    "fused": {"v5p": 0.665, "v6e": 0.292, "tpu7x": 0.287},
}
# Megablox beside our grouped products, our milliseconds over its: 64 equal groups on v5p, Mixtral's
# sizes on v6e; tpu7x as v6e.
MEGABLOX = {
    "gmm": ("grouped_matmul", {"v5p": 0.924, "v6e": 0.955, "tpu7x": 0.955}),
    "tgmm": ("grouped_matmul_dw", {"v5p": 0.852, "v6e": 0.879, "tpu7x": 0.879}),
}
PRODUCTS = {"fwd": (1, 1), "dq": (2, 1), "dkv": (2, 2), "fused": (3, 2)}  # as wide as keys, values


class Kernels:
    """Knows the kernels of one program."""

    def __init__(self, text: str, chip: str) -> None:
        self.chip = chip
        self.is_fused = "%splash_mha_dq" not in text and "%splash_mqa_dq" not in text

    def __call__(self, computation: Computation, op: Op) -> KernelCall | None:
        name = kernel_name(op)
        if name is None:
            return None
        given = [a for operand in op.operands for a in computation.arrays(operand)]
        wide = [a for a in given if a.dtype in ("bf16", "f32")]
        if name in MEGABLOX:
            ours, share = MEGABLOX[name]
            (groups, *_) = [a for a in (*wide, *op.arrays) if len(a.sizes) == 3]
            flops = 2.0 * wide[0].sizes[0] * groups.sizes[1] * groups.sizes[2]
            return KernelCall(name, flops, OURS[ours][self.chip] * share[self.chip])
        if not name.startswith("splash"):
            return KernelCall(name, None, None)
        part = name.split("_")[2]
        part = "fused" if part == "dkv" and self.is_fused else part
        queries, _, values = wide[:3]
        *heads, length, width = queries.sizes
        pairs = length * mean_keys(length, None)
        for size in heads:
            pairs *= size
        by_keys, by_values = PRODUCTS[part]
        flops = 2.0 * pairs * (by_keys * width + by_values * values.sizes[-1])
        return KernelCall(f"splash_{part}", flops, SPLASH[part][self.chip])
