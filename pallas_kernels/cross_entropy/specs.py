# SPDX-License-Identifier: Apache-2.0
"""Shapes of real models' last layers, for tests and bench.

Legend: R rows (tokens of a device's step)  D width  V vocabulary
"""

from typing import NamedTuple


class Spec(NamedTuple):
    R: int
    D: int
    V: int
    dtype: str = "bfloat16"
    softcap: float | None = None


SPECS = {
    "llama3_8b": Spec(8192, 4096, 128256),
    "llama2_7b": Spec(8192, 4096, 32000),
    "gemma2_9b": Spec(8192, 3584, 256000, softcap=30.0),
    "gpt2_124m": Spec(16384, 768, 50304),  # 50257 tokens, padded
}
