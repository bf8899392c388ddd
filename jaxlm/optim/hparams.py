# SPDX-License-Identifier: Apache-2.0
"""The scalars of an update, as run-time inputs of the jitted step.

Changing one recompiles nothing, and `jax.vmap` over a stack of them runs many settings in one
program.  What shapes the program stays in the config: optimizer, schedule, Newton-Schulz
iterations, the patterns of the groups.
"""

import math
from typing import Any

import numpy as np

from jaxlm.optim.config import OptimConfig

FIELDS = (
    "peak_lr",
    "warmup_steps",
    "final_lr_frac",
    "decay_frac",
    "b1",
    "b2",
    "eps",
    "weight_decay",
    "clip_norm",
    "z_loss",
    "muon_lr",
    "muon_momentum",
)


def hparams(config: OptimConfig, num_steps: int) -> dict[str, Any]:
    """All scalars as np.float32, by field name, with num_steps and the groups' `groups/<i>/...`.

    The keys depend on nothing but the number of groups; "no clipping" is a limit of infinity.

    Example:
        >>> float(hparams(OptimConfig(peak_lr=0.25, clip_norm=None), num_steps=10)["clip_norm"])
        inf
    """
    scalars = {name: getattr(config, name) for name in FIELDS} | {"num_steps": num_steps}
    if config.clip_norm is None:
        scalars["clip_norm"] = math.inf
    for i, group in enumerate(config.groups):
        scalars[f"groups/{i}/lr_scale"] = group.lr_scale
        scalars[f"groups/{i}/weight_decay_scale"] = group.weight_decay_scale
    return {name: np.float32(value) for name, value in scalars.items()}
