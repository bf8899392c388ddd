# SPDX-License-Identifier: Apache-2.0
"""One of two processes, of four devices each, that together read checkpoints and write them again.

python -m tests.e2e.rewrite ADDRESS PROCESS_ID TARGET RUN ...
"""

import sys
from pathlib import Path

import jax

MESHES = ({"data": 8}, {"fsdp": 8}, {"fsdp": 4, "model": 2})


def main(address: str, process_id: str, target: str, *runs: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(address, 2, int(process_id))

    from jaxlm.train.checkpoint import Checkpointer, Identity
    from jaxlm.train.processes import leaving_at_failure
    from tests.e2e.runs import state_of

    with leaving_at_failure():
        for run_dir in map(Path, runs):
            for i, mesh in enumerate(MESHES):
                state = state_of(run_dir, **mesh)
                checkpointer = Checkpointer(
                    Path(target) / f"{run_dir.name}-{i}", 2, Identity("", "")
                )
                checkpointer.save(int(state.step), state)
                checkpointer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
