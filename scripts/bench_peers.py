# SPDX-License-Identifier: Apache-2.0
"""Training speed on one CPU beside other projects: one fresh process per measurement, in turn.

    python scripts/bench_peers.py ROUNDS NAME=PYTHON:CHECKOUT ...
    python scripts/bench_peers.py 3 nanogpt=~/v-torch/bin/python:~/nanoGPT nanodo=~/v/bin/python:~/nanodo

NAME is nanogpt, nanogpt_compile or nanodo; PYTHON an interpreter that has what the project needs.
All train configs/tiny_decoder.gin's shape: 6 layers, width 384, 6 heads, MLP 1536, vocabulary 8192,
16 rows of 256, f32, AdamW, clipping at 1.  The order is reversed in odd rounds.  Run nothing else.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def jobs(specs: list[str]) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name -> (command, extra environment)."""
    found = {"jaxlm": ([sys.executable, str(HERE / "peers" / "jaxlm_step.py")], {})}
    for spec in specs:
        name, _, where = spec.partition("=")
        python, _, checkout = where.partition(":")
        script = HERE / "peers" / f"{name.removesuffix('_compile')}_step.py"
        command = [os.path.expanduser(python), str(script), os.path.expanduser(checkout)]
        found[name] = (command, {"COMPILE": str(int(name.endswith("_compile")))})
    return found


def measure(command: list[str], extra: dict[str, str]) -> dict[str, float]:
    """Runs one job; it prints a JSON list with the unix time of the end of every update."""
    start, environment = time.time(), {**os.environ, **extra, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{' '.join(command)} failed: {run.stderr.strip().splitlines()[-1:]}")
    ends = json.loads(run.stdout.strip().splitlines()[-1])
    seconds = [b - a for a, b in itertools.pairwise(ends)][2:]
    return {
        "tokens_per_s": 16 * 256 / statistics.median(seconds),
        "first_update_s": ends[0] - start,
        "load": os.getloadavg()[0],
    }


def main(argv: list[str]) -> int:
    if not argv or not argv[0].isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    todo = jobs(argv[1:])
    results: dict[str, list[dict[str, float]]] = {name: [] for name in todo}
    for r in range(int(argv[0])):
        for name in list(todo) if r % 2 == 0 else reversed(todo):
            results[name].append(measure(*todo[name]))
            print(name, {k: round(v, 2) for k, v in results[name][-1].items()}, flush=True)
    print(f"{'':18s} tokens/s (rounds)                     jaxlm / it (rounds)    first update")
    for name, rows in results.items():
        speeds = [row["tokens_per_s"] for row in rows]
        ratios = [o["tokens_per_s"] / s for o, s in zip(results["jaxlm"], speeds, strict=True)]
        first = min(row["first_update_s"] for row in rows)
        print(
            f"{name:18s} {statistics.median(speeds):6.0f} ({' '.join(f'{s:.0f}' for s in speeds)})"
            f"   {statistics.median(ratios):5.2f} ({' '.join(f'{x:.2f}' for x in ratios)})   {first:.1f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
