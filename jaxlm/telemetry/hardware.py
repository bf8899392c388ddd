# SPDX-License-Identifier: Apache-2.0
"""Peak matrix throughput of a device: the denominator of MFU.

TPU figures: the vendor's system pages (v5e, v5p, v6e, tpu7x; a tpu7x chip is two JAX devices).
GPU figures: the vendor's data sheets, dense.  A CPU has no such figure, so it is measured.
"""

import functools
import time

import jax
import jax.numpy as jnp

BF16_PEAK_FLOPS = {  # per JAX device, by a part of its device_kind
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(device: jax.Device, dtype: str) -> tuple[float | None, str]:
    """(FLOP/s of one device, where the figure is from); None where nothing is known.

    CPUs are measured in `dtype`; the measurement is shared by the simulated devices of a host.
    """
    if device.platform == "cpu":
        share = len([d for d in jax.local_devices() if d.platform == "cpu"])
        return measure_matmul_flops(dtype) / share, f"measured {dtype} matrix product"
    for kind, flops in BF16_PEAK_FLOPS.items():
        if kind.lower() in device.device_kind.lower():
            return flops, f"{kind} bf16 data sheet"
    return None, f"unknown device {device.device_kind!r}"


@functools.cache
def measure_matmul_flops(dtype: str, size: int = 1024, repeats: int = 6) -> float:
    """Best FLOP/s of a square product on the default device."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
