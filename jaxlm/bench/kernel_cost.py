# SPDX-License-Identifier: Apache-2.0
"""Compiles one kernel for one TPU in a process of its own, and prints its static cost as JSON.

    python -m jaxlm.bench.kernel_cost KERNEL SHAPE CHIP DUMP_FOLDER

libtpu reads its flags once, when it is loaded: hence the process and its environment (bench/kernels.py).
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.bench import attention_kernels as attention
from jaxlm.bench.schedule import CLOCK_HZ, HBM_BYTES_PER_S, TENSOR_CORES, TOPOLOGY, read_schedule

KERNELS: dict[str, Callable[..., attention.Work]] = {
    "ours": partial(attention.forward, paths="online"),
    "ours, bounded logits": partial(attention.forward, paths="bounded"),
    "flash 1024": partial(attention.flash, block=1024),
    "splash 1024/512": partial(attention.splash, block=1024, compute=512, is_backward=False),
    "splash 2048/1024": partial(attention.splash, block=2048, compute=1024, is_backward=False),
    "ours, backward": attention.backward,
    "splash fused 1024/512, backward": partial(
        attention.splash, block=1024, compute=512, is_backward=True
    ),
}


def cost(work: attention.Work, chip: str, folder: Path) -> dict[str, Any]:
    """Static cost of all kernels of a program together."""
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
    start = time.perf_counter()
    jax.jit(whole).lower(*map(place, work.arguments)).compile()
    seconds = time.perf_counter() - start
    total: dict[str, float] = dict.fromkeys(("cycles", "busy", "spills", "bundles"), 0.0)
    for name, runs in work.kernels:
        schedule = read_schedule(folder, name)
        cycles, busy = schedule.cost(runs.of(schedule, TENSOR_CORES[chip]))
        total["cycles"] += cycles
        total["busy"] += busy * cycles
        total["spills"] += schedule.num_spills
        total["bundles"] += schedule.num_bundles
    return {
        "schedule_s": total["cycles"] / CLOCK_HZ[chip],
        "hbm_s": work.hbm_bytes / HBM_BYTES_PER_S[chip],
        "mxu_frac": total["busy"] / total["cycles"],
        "spills": int(total["spills"]),
        "bundles": int(total["bundles"]),
        "compile_s": seconds,
    }


def main(argv: list[str]) -> int:
    kernel, shape, chip, folder = argv
    work = KERNELS[kernel](attention.SHAPES[shape], chip)
    sys.stdout.write(json.dumps(cost(work, chip, Path(folder))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
