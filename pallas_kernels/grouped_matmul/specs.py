# SPDX-License-Identifier: Apache-2.0
"""Shapes of real models' expert layers, for tests and bench.

Legend: R routed rows  E experts  D width  F expert width
"""

from typing import NamedTuple

import numpy as np


class Spec(NamedTuple):
    R: int
    D: int
    F: int
    E: int
    dtype: str = "bfloat16"


SPECS = {
    "mixtral_8x7b": Spec(16384, 4096, 14336, 8),
    "fine_grained_64": Spec(32768, 2048, 1408, 64),
}


def equal_sizes(spec: Spec) -> np.ndarray:
    return np.full(spec.E, spec.R // spec.E)


def zipf_sizes(spec: Spec) -> np.ndarray:
    """Expert e gets a share proportional to 1 / (e + 1); the largest takes what rounding leaves."""
    share_E = 1 / np.arange(1, spec.E + 1)
    sizes_E = np.floor(spec.R * share_E / share_E.sum()).astype(int)
    sizes_E[0] += spec.R - sizes_E.sum()
    return sizes_E
