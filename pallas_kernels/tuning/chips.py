# SPDX-License-Identifier: Apache-2.0
"""Which TPU generation a program is compiled for, as the tables of block sizes call it."""

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


def chip_of(device_kind: str) -> str | None:
    """The chip that a device_kind of jax names; None if that is no TPU that the tables know."""
    kind = device_kind.lower()
    if "tpu" not in kind:
        return None
    return next((chip for part, chip in KINDS if part in kind), None)


def running_chip() -> str | None:
    """The chip of the default backend."""
    return chip_of(jax.devices()[0].device_kind) if jax.default_backend() == "tpu" else None
