# SPDX-License-Identifier: Apache-2.0
"""From the shell to the first update: what a person waits for.  Imports no jax itself."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxlm.core.errors import RunError
from jaxlm.telemetry.writer import read_rows


def bench_start(config_paths: list[str], overrides: list[str]) -> dict[str, str]:
    """Name -> text of a table: CPU time of --help, first update with a cold and a warm compile cache."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "xla"
        cold = _first_update(config_paths, overrides, Path(folder) / "cold", cache)
        warm = [
            _first_update(config_paths, overrides, Path(folder) / f"warm{i}", cache)
            for i in range(3)
        ]
    return {
        "jaxlm --help": f"{min(_help_cpu_seconds() for _ in range(5)):.3f} s of CPU time (best of 5)",
        "first update, cold compile cache": f"{cold:.1f} s from process start",
        "first update, warm compile cache": f"{min(warm):.1f} s (best of {len(warm)})",
    }


def _help_cpu_seconds() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "jaxlm.cli.main", "--help"], check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _first_update(
    config_paths: list[str], overrides: list[str], run_dir: Path, cache: Path
) -> float:
    """Seconds from starting the process to the first update's row; data prepared beforehand."""
    sets = [
        *overrides,
        "TrainConfig.num_steps = 100",  # more than it gets to
        "OptimConfig.warmup_steps = 0",
        "TrainConfig.eval_batches = 1",
    ]
    command = [
        sys.executable,
        "-m",
        "jaxlm.cli.main",
        "train",
        *config_paths,
        "--run",
        str(run_dir),
    ]
    for text in sets:
        command += ["--set", text]
    start = time.time()
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env) as process:
        while process.poll() is None and not any(read_rows(run_dir, "train")):
            time.sleep(0.2)
        process.terminate()  # what comes after the first update is not waited for
    for row in read_rows(run_dir, "train"):
        return row["time"] - start
    raise RunError("the run ended before its first update, for the reason above")
