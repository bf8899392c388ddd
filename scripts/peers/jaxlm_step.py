# SPDX-License-Identifier: Apache-2.0
"""jaxlm's own train step on configs/tiny_decoder.gin; see scripts/bench_peers.py."""

import json
import sys
import time
from pathlib import Path

import jax

from jaxlm.bench.step import set_up
from jaxlm.cli.common import keep_freed_memory
from jaxlm.cli.gin_edge import load
from jaxlm.train.setup import on_mesh

CONFIG = Path(__file__).parents[2] / "configs" / "tiny_decoder.gin"

keep_freed_memory()  # as every jaxlm command does
# nobody else looks into the update here: nanodo's log_internal_metrics is off, too
blind = "TrainConfig.probe_every = None"
trainer, state, batch = set_up(load([str(CONFIG)], [blind, *sys.argv[1:]]))
ends = []
with on_mesh(trainer.mesh, trainer.rules):
    for _ in range(12):
        state, metrics = trainer.step(state, batch)
        jax.device_get(metrics)
        ends.append(time.time())
print(json.dumps(ends))
