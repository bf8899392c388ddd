# SPDX-License-Identifier: Apache-2.0
"""Compiles a train step for devices that are not here, in a process of its own.

    python -m jaxlm.plan.compile_step REQUEST.json FOLDER

writes to FOLDER the optimised program (program.hlo.gz) and what only this process knows
(facts.json): memory by the compiler's count, sizes of the state, where the devices lie.
With a path to save to it writes the executable there, and nothing else; for a plan of TPUs no
machine code is made (schedule.py).
libtpu reads its environment once, when it is loaded: hence the process (plan/compiled.py).
"""

import dataclasses
import gzip
import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from jaxlm.config import RunConfig
from jaxlm.core.parent import die_with
from jaxlm.core.typed import from_dict
from jaxlm.loss import batch_loss
from jaxlm.model.residuals import saved_bytes
from jaxlm.plan.executable import save
from jaxlm.plan.schedule import schedule_of
from jaxlm.plan.topology import Topology, parse_topology
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import ROWS
from jaxlm.train.setup import Trainer, abstract_batch, build_trainer, on_mesh

MEMORY = ("argument", "output", "alias", "temp", "generated_code")


def devices_of(topology: Topology) -> list[jax.Device]:
    """Devices to compile for, as the compiler knows them."""
    if topology.chip.is_tpu:
        # a host has four chips, unless it is told that there is one
        is_single = math.prod(topology.shape) == 1
        given: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if is_single else {}
        if topology.num_slices > 1:
            given["num_slices"] = topology.num_slices
        one_slice = dataclasses.replace(topology, num_slices=1)
        found = topologies.get_topology_desc(platform="tpu", topology_name=one_slice.name, **given)
        return list(found.devices)
    from jaxlm.plan.gpu_spec import spec_of

    found = topologies.get_topology_desc(
        platform="cuda",
        target_config=spec_of(topology.chip),
        topology=f"1x{topology.num_devices}x1",
    )
    return list(found.devices)


def lowered_step(config: RunConfig, devices: list[jax.Device]) -> tuple[Any, Trainer]:
    """The step that `jaxlm train` jits, lowered for a mesh over `devices`."""
    mesh = make_mesh(config.mesh, devices)
    trainer = build_trainer(config, np.ones(config.model.vocab_size, np.int32), mesh)
    batch = abstract_batch(config, mesh, config.data.batch_size)
    step: Any = trainer.step
    with on_mesh(mesh, trainer.rules):
        return step.lower(trainer.abstract_state, batch), trainer


def local_bytes(tree: Any) -> int:
    """What one device holds of a tree of sharded shapes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def stored_bytes(config: RunConfig, trainer: Trainer) -> float:
    """What differentiating one micro-batch stores, on one device if all of it is split by rows."""
    rows = config.data.batch_size // config.train.num_micro_batches
    batch = abstract_batch(config, trainer.mesh, rows)
    loss = lambda params, batch: batch_loss(trainer.model, params, batch).loss
    with on_mesh(trainer.mesh, trainer.rules):
        whole = saved_bytes(loss, trainer.abstract_state.params, batch)
    shard = jax.NamedSharding(trainer.mesh, ROWS).shard_shape((rows, config.data.seq_len))
    return whole * shard[0] / rows


def program_of(lowered: Any, is_tpu: bool, folder: Path) -> tuple[str, dict[str, int]]:
    """(The optimised program's text, bytes of one device by kind)."""
    if is_tpu:
        return schedule_of(lowered, folder)
    compiled = lowered.compile()
    sizes = compiled.memory_analysis()
    return compiled.as_text(), {name: getattr(sizes, f"{name}_size_in_bytes") for name in MEMORY}


def main(argv: list[str]) -> int:
    request = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    die_with(request["parent"])
    folder = Path(argv[1])
    config, topology = from_dict(RunConfig, request["config"]), parse_topology(request["topology"])
    # plans are kept in a cache of their own; what comes out of JAX's does not run when it is saved
    jax.config.update("jax_enable_compilation_cache", False)
    lowered, trainer = lowered_step(config, devices_of(topology))
    if request["save"]:
        save(config, list(trainer.mesh.devices.flat), lowered.compile(), Path(request["save"]))
        return 0
    state = trainer.abstract_state
    facts: dict[str, Any] = {
        "mesh": dict(trainer.mesh.shape),
        "coords": [_place(d) for d in trainer.mesh.devices.flat],
        "parameters": local_bytes(state.params),
        "optimizer_state": local_bytes(state.opt_state),
        "stored": stored_bytes(config, trainer),
    }
    text, facts["memory"] = program_of(lowered, topology.chip.is_tpu, folder)
    facts["cpu_s"] = time.process_time()
    facts["host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with gzip.open(folder / "program.hlo.gz", "wt", encoding="utf-8", compresslevel=3) as f:
        f.write(text)
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return 0


def _place(device: Any) -> list[int]:
    coords = list(getattr(device, "coords", ()))
    return [*coords, getattr(device, "core_on_chip", 0)] if coords else []


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code)  # the compiler may be at work in a thread, and has nothing more to say
