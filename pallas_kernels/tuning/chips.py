# SPDX-License-Identifier: Apache-2.0
"""Which TPU or GPU a program is compiled for, as the tables of block sizes call it."""

import jax

KINDS = (  # parts of a device_kind, the longer before its own prefix
    ("v5 lite", "v5e"),
    ("v5e", "v5e"),
    ("v5p", "v5p"),
    ("v5", "v5p"),
    ("v6", "v6e"),
    ("7x", "tpu7x"),
    ("v7", "tpu7x"),
)

GPUS = {"h100": 227, "h200": 227, "a100": 163, "l4": 99}  # KB of shared memory per program
GPU_KINDS = (  # of the capability of one of these, or of 8.6, which has the l4's memory
    ("h200", "h200"),  # and GH200
    ("h100", "h100"),
    ("h800", "h100"),
    ("h20", "h100"),
    ("a100", "a100"),
    ("a800", "a100"),
    ("a10", "l4"),
    ("a40", "l4"),
    ("l4", "l4"),  # and L40
)


def chip_of(device_kind: str) -> str | None:
    """The chip that a device_kind of jax names; None if that is no TPU that the tables know."""
    kind = device_kind.lower()
    if "tpu" not in kind:
        return None
    return next((chip for part, chip in KINDS if part in kind), None)


def gpu_of(device_kind: str) -> str | None:
    """The same for NVIDIA GPUs of compute capability 8.0 and more."""
    kind = device_kind.lower()
    if "nvidia" not in kind:
        return None
    return next((gpu for part, gpu in GPU_KINDS if part in kind), None)


def running_chip() -> str | None:
    """The TPU of the default backend."""
    return chip_of(jax.devices()[0].device_kind) if jax.default_backend() == "tpu" else None


def running_gpu() -> str | None:
    """The GPU of the default backend."""
    return gpu_of(jax.devices()[0].device_kind) if jax.default_backend() == "gpu" else None
