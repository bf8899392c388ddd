# SPDX-License-Identifier: Apache-2.0
"""What a kernel's gradients say when they are differentiated themselves."""

from collections.abc import Callable
from typing import Any

import jax


def once(gradients: Callable[..., Any]) -> Callable[..., Any]:
    """gradients(options, *arrays) as before, but for a message in the place of a derivative."""
    wrapped = jax.custom_jvp(gradients, nondiff_argnums=(0,))

    @wrapped.defjvp
    def refuse(options: Any, primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(
            "attention's kernels can be differentiated once, not twice; use impl='reference'"
        )

    return wrapped
