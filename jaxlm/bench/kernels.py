# SPDX-License-Identifier: Apache-2.0
"""Our kernels beside the public ones, by the TPU compiler's own schedule; predicted, never measured.

Each kernel is compiled in a process of its own (bench/kernel_cost.py), for chips that need not be
there.  Its predicted time is the longer of its schedule and of the way of its blocks to memory.
Costs are kept in the user's cache folder, by kernel, blocks, source and versions of the compiler.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.bench.kernel_tables import versions
from jaxlm.bench.schedule import DUMP_FLAGS, TOPOLOGY
from jaxlm.core.canonical import write_atomic
from jaxlm.core.errors import ConfigError
from jaxlm.core.typed import nearest
from jaxlm.telemetry.readable import aligned

HEADER = (
    "shape", "kernel", "chip", "cycles", "predicted ms", "/ best public", "MXU", "bound by",
    "spills", "HBM MB", "bundles", "note",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
COUNTING = ("schedule", "kernel_runs", "kernel_cost")  # modules behind every cost

Progress = Callable[[str, float | None, str], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel at one shape on one chip; cost is None where it does not compile or apply."""

    shape: str
    kernel: str  # operation/direction/name
    chip: str
    cost: dict[str, Any] | None
    reason: str = ""
    blocks: dict[str, Any] | None = None

    @property
    def predicted_ms(self) -> float:
        return self.cost["predicted_ms"] if self.cost else float("inf")

    @property
    def is_ours(self) -> bool:
        return self.kernel.rpartition("/")[2].startswith("ours")

    @property
    def contest(self) -> tuple[str, str, str]:
        """Rows that compete: one shape, chip, operation and direction."""
        return self.shape, self.chip, self.kernel.rpartition("/")[0]


def choices() -> dict[str, list[str]]:
    """What there is to choose from."""
    from jaxlm.bench.kernel_list import KERNELS, SHAPES  # imports jax

    shapes = [name for some in SHAPES.values() for name in some]
    return {"shapes": shapes, "chips": list(TOPOLOGY), "kernels": list(KERNELS)}


def selected(allowed: list[str], wanted: Iterable[str] | None, what: str) -> list[str]:
    """Names that are wanted or begin with a part of a path that is.  Raises ConfigError."""
    if wanted is None:
        return allowed
    found = []
    for text in wanted:
        some = [name for name in allowed if name == text or name.startswith(f"{text}/")]
        if not some:
            parts = [name.split("/") for name in allowed]
            paths = {"/".join(of[:n]) for of in parts for n in range(1, len(of) + 1)}
            raise ConfigError(f"--{what}: unknown {text!r}; {nearest(text, paths)}")
        found += some
    return list(dict.fromkeys(found))


def combinations(
    shapes: Iterable[str], chips: Iterable[str], kernels: Iterable[str]
) -> list[tuple[str, str, str]]:
    """(kernel, shape, chip) wherever the shape is one of the kernel's operation."""
    from jaxlm.bench.kernel_list import KERNELS

    chips, kernels = list(chips), list(kernels)
    return [
        (kernel, shape, chip)
        for shape in shapes
        for chip in chips
        for kernel in kernels
        if shape in KERNELS[kernel].shapes
    ]


def bench_kernels(todo: list[tuple[str, str, str]], progress: Progress) -> list[Row]:
    """Each kernel at its best known block sizes.  Raises ConfigError without libtpu."""
    rows = []
    for i, (kernel, shape, chip) in enumerate(todo):
        progress("compile kernels", i / len(todo), f"{kernel}, {shape}, {chip}")
        rows.append(measure(kernel, shape, chip))
    progress("compile kernels", 1.0, "")
    return rows


def measure(kernel: str, shape: str, chip: str, blocks: dict[str, Any] | None = None) -> Row:
    """From the cache, or by compiling.  Raises ConfigError without libtpu, or if it is killed."""
    from jaxlm.bench.kernel_list import KERNELS

    blocks = blocks or KERNELS[kernel].standing(shape, chip) or None
    path = _cached(kernel, shape, chip, blocks)
    found = _kept(path)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)  # a mistake ends here, not after a minute
        found = _compile(kernel, shape, chip, blocks)
        write_atomic(path, json.dumps(found).encode())
    return Row(shape, kernel, chip, found.get("cost"), found.get("reason", ""), blocks)


def _kept(path: Path) -> dict[str, Any] | None:
    """A cost, or the reason why there is none; None if there is no such file, or a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    is_whole = isinstance(found.get("cost"), dict) or isinstance(found.get("reason"), str)
    return found if is_whole else None


def _compile(kernel: str, shape: str, chip: str, blocks: dict[str, Any] | None) -> dict[str, Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "the TPU compiler is not installed; it needs no TPU: pip install 'jaxlm[tpu]'"
        )
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": DUMP_FLAGS.format(folder=folder),
        }
        command = [sys.executable, "-m", "jaxlm.bench.kernel_cost", kernel, shape, chip, folder]
        command += [json.dumps(blocks)] if blocks else []
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if "Error:" in line and "common_lib" not in line]
        if done.returncode in (-signal.SIGINT, -signal.SIGKILL, -signal.SIGTERM):
            raise ConfigError(f"the compiler was killed at {kernel}, {shape}, {chip}; start again")
        return {"reason": (errors or lines)[-1][:160]}
    return {"cost": json.loads(done.stdout.splitlines()[-1])}


def _cached(kernel: str, shape: str, chip: str, blocks: dict[str, Any] | None) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = json.dumps([kernel, shape, chip, blocks, versions(), _source(kernel)])
    return base / "jaxlm" / "kernel_costs" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


@functools.cache
def _source(kernel: str) -> str:
    """A digest of the code that a cost depends on."""
    operation, _, name = kernel.split("/")
    bench = [ROOT / "jaxlm" / "bench" / f"{module}.py" for module in COUNTING]
    files = [*bench, *(ROOT / "jaxlm" / "bench").glob(f"{operation}*kernels.py")]
    if name.startswith("ours"):
        files += (ROOT / "pallas_kernels" / operation).glob("*.py")
    if name.startswith("ours") or operation == "cross_entropy":
        files += (ROOT / "pallas_kernels" / "tuning").glob(f"{operation}.*")
    if name.startswith(("xla", "ragged_dot")):
        files.append(ROOT / "jaxlm" / "bench" / "xla_kernels.py")
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.exists()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def table(rows: list[Row]) -> Iterator[str]:
    """Lines for people, columns aligned."""
    return aligned([HEADER, *(_cells(row, rows) for row in rows)])


def ratio(row: Row, rows: list[Row]) -> float | None:
    """Predicted time over that of the best public kernel, if there is one."""
    rivals = [r.predicted_ms for r in rows if r.contest == row.contest and not r.is_ours]
    best = min(rivals, default=float("inf"))
    return row.predicted_ms / best if row.cost and best < float("inf") else None


def _cells(row: Row, rows: list[Row]) -> tuple[str, ...]:
    names = (row.shape, row.kernel, row.chip)
    if row.cost is None:
        return *names, *["-"] * (len(HEADER) - 4), row.reason
    cost, best = row.cost, ratio(row, rows)
    return (
        *names,
        f"{cost['cycles']:,}",
        f"{cost['predicted_ms']:.3f}",
        "-" if best is None else f"{best:.3f}",
        f"{cost['mxu_frac']:.0%}",
        cost["bound_by"] + ("" if cost["bound_by"] == "memory" else f" {cost['bound_frac']:.0%}"),
        f"{cost['spills']:,}",
        f"{cost['hbm_bytes'] / 1e6:,.0f}",
        f"{cost['bundles']:,}",
        cost["note"],
    )


def as_json(rows: list[Row], command: str) -> str:
    """All of it for machines; every time in it is predicted."""
    found = [dataclasses.asdict(row) | {"ratio_to_best_public": ratio(row, rows)} for row in rows]
    return json.dumps({"command": command, "versions": versions(), "predicted": found}, indent=1)
