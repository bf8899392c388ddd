# SPDX-License-Identifier: Apache-2.0
"""Our kernels beside the public ones, by the TPU compiler's own schedule; predicted, never measured.

Each kernel is compiled in a process of its own (bench/kernel_cost.py), for chips that need not be
there.  Its predicted time is the longer of its schedule and of moving each tensor once.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxlm.bench.schedule import DUMP_FLAGS, TOPOLOGY
from jaxlm.core.errors import ConfigError

HEADER = (
    "shape", "kernel", "chip", "predicted ms", "/ best public", "MXU", "bound by", "spills", "bundles",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel at one shape on one chip; cost is None where it does not compile or apply."""

    shape: str
    kernel: str
    chip: str
    cost: dict[str, Any] | None
    reason: str = ""

    @property
    def seconds(self) -> float:
        return max(self.cost["schedule_s"], self.cost["hbm_s"]) if self.cost else float("inf")

    @property
    def is_ours(self) -> bool:
        return self.kernel.startswith("ours")

    @property
    def direction(self) -> str:
        return "backward" if self.kernel.endswith("backward") else "forward"


def choices() -> dict[str, list[str]]:
    """What there is to choose from."""
    from jaxlm.bench.attention_kernels import SHAPES  # imports jax
    from jaxlm.bench.kernel_cost import KERNELS

    return {"shapes": list(SHAPES), "chips": list(TOPOLOGY), "kernels": list(KERNELS)}


def bench_kernels(
    shapes: Iterable[str],
    chips: Iterable[str],
    kernels: Iterable[str],
    progress: Callable[[str, float | None, str], None],
) -> list[Row]:
    """All combinations.  Raises ConfigError without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "the TPU compiler is not installed; it needs no TPU: pip install 'jaxlm[tpu]'"
        )
    todo = [(s, k, c) for s in shapes for c in chips for k in kernels]
    rows = []
    for i, (shape, kernel, chip) in enumerate(todo):
        progress("compile kernels", i / len(todo), f"{kernel}, {shape}, {chip}")
        rows.append(_measure(shape, kernel, chip))
    progress("compile kernels", 1.0, "")
    return rows


def _measure(shape: str, kernel: str, chip: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": DUMP_FLAGS.format(folder=folder),
        }
        command = [sys.executable, "-m", "jaxlm.bench.kernel_cost", kernel, shape, chip, folder]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if "Error" in line), lines[-1])
        return Row(shape, kernel, chip, None, reason[:100])
    return Row(shape, kernel, chip, json.loads(done.stdout.splitlines()[-1]))


def table(rows: list[Row]) -> Iterator[str]:
    """Lines for people, columns aligned."""
    cells = [HEADER, *(_cells(row, rows) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
    for line in cells:
        yield "  ".join(
            text.ljust(width) for text, width in zip(line, widths, strict=True)
        ).rstrip()


def _cells(row: Row, rows: list[Row]) -> tuple[str, ...]:
    if row.cost is None:
        return (row.shape, row.kernel, row.chip, "-", "-", "-", row.reason, "", "")
    rivals = [
        other.seconds
        for other in rows
        if (other.shape, other.chip, other.direction) == (row.shape, row.chip, row.direction)
        and not other.is_ours
    ]
    best = min(rivals, default=float("inf"))
    return (
        row.shape,
        row.kernel,
        row.chip,
        f"{row.seconds * 1e3:.3f}",
        f"{row.seconds / best:.3f}" if best < float("inf") else "-",
        f"{row.cost['mxu_frac']:.0%}",
        "schedule" if row.cost["schedule_s"] >= row.cost["hbm_s"] else "memory",
        f"{row.cost['spills']:,}",
        f"{row.cost['bundles']:,}",
    )
