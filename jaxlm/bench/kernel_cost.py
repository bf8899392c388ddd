# SPDX-License-Identifier: Apache-2.0
"""Compiles one kernel for one TPU in a process of its own, and prints its static cost as JSON.

    python -m jaxlm.bench.kernel_cost KERNEL SHAPE CHIP DUMP_FOLDER [BLOCKS]

BLOCKS is JSON, arguments of the kernel's block sizes; without it, the best that the tables know.
libtpu reads its flags once, when it is loaded: hence the process and its environment
(bench/kernels.py).
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.bench.kernel_list import KERNELS
from jaxlm.bench.kernel_runs import ChangedError, Part, Work
from jaxlm.bench.schedule import (
    CLOCK_HZ,
    HBM_BYTES_PER_S,
    TENSOR_CORES,
    TOPOLOGY,
    Schedule,
    read_schedule,
    read_schedules,
)
from jaxlm.bench.xla_kernels import Cost, count


def cost(work: Work, chip: str, folder: Path) -> dict[str, Any]:
    """Static cost of a program: of its kernels, or of all of it where it is XLA's."""
    start = time.perf_counter()
    compiled = compiled_for(work, chip)
    seconds = time.perf_counter() - start
    cores, rates = TENSOR_CORES[chip], (CLOCK_HZ[chip], HBM_BYTES_PER_S[chip])
    if work.parts:
        total = Cost()
        for part, schedule in _schedules(work.parts, folder):
            total.add(schedule, part.rule(schedule, cores), part.calls, part.hbm_bytes, *rates)
        if work.hbm_bytes:
            total.add(None, None, 1, work.hbm_bytes, *rates)
            total.longer_s = max(total.schedule_s, total.hbm_s)  # kernels overlap the two
    else:
        text = compiled.as_text()
        parts, moved = work.parts_of(text) if work.parts_of else ((), 0)
        total = count(text, folder, parts, moved, cores, *rates)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    busy = {unit: n / max(total.cycles, 1) for unit, n in total.issued.items()}
    return {
        "predicted_ms": total.longer_s * 1e3,
        "schedule_ms": total.schedule_s * 1e3,
        "memory_ms": total.hbm_s * 1e3,
        "cycles": round(total.cycles),
        "mxu_frac": busy.get("MXU", 0.0),
        "bound_by": "memory"
        if total.hbm_s > total.schedule_s
        else max(busy, key=lambda u: busy[u]),
        "bound_frac": 1.0 if total.hbm_s > total.schedule_s else max(busy.values()),
        "spills": total.spills,
        "hbm_bytes": round(total.hbm_bytes),
        "temp_bytes": temporary,
        "bundles": total.bundles,
        "note": f"temporaries {temporary / work.whole[1]:.1%} of {work.whole[0]}"
        if work.whole
        else "",
        "compile_s": seconds,
    }


def compiled_for(work: Work, chip: str) -> Any:
    """The program for one device of a chip that need not be there."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY[chip]).devices
    mesh = Mesh(np.array(devices[:1]), ("chip",))
    place = lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec())
    )
    whole = jax.shard_map(
        work.function,
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(whole).lower(*map(place, work.arguments)).compile()


def _schedules(parts: tuple[Part, ...], folder: Path) -> list[tuple[Part, Schedule]]:
    if len(parts) == 1:
        return [(parts[0], read_schedule(folder, parts[0].name))]
    parts = tuple(part for part in parts if part.calls)
    found = read_schedules(folder, parts[0].name)
    if len(found) != len(parts):
        raise ChangedError(
            f"{len(found)} programs are called {parts[0].name}, its rule counts {len(parts)}"
        )
    return list(zip(parts, found, strict=True))


def main(argv: list[str]) -> int:
    name, shape, chip, folder, *blocks = argv
    kernel = KERNELS[name]
    work = kernel.work(shape, chip, json.loads(blocks[0]) if blocks else None)
    sys.stdout.write(json.dumps(cost(work, chip, Path(folder))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
