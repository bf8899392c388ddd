# SPDX-License-Identifier: Apache-2.0
"""Eight runs of one shape: in turn by one compiled step, or together in one vmapped program.

Whichever is faster on this machine is what `jaxlm ablate --how` should be; compilation is counted,
since a campaign pays it.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.bench.step import random_batch
from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.train.setup import build_trainer, on_mesh

NUM_MEMBERS = 8


def bench_members(config: RunConfig, num_steps: int) -> dict[str, str]:
    """Name -> text of a table.  Raises ConfigError for fewer than 3 steps."""
    if num_steps < 3:
        raise ConfigError(f"--steps must be >= 3, got {num_steps}")
    trainer = build_trainer(config, np.ones(config.data.tokenizer.vocab_size, np.int32))
    batch = random_batch(config)
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    with on_mesh(trainer.mesh, trainer.rules):
        fresh = lambda: [trainer.init(jax.random.key(i)) for i in range(NUM_MEMBERS)]
        alone = jax.jit(trainer.step, donate_argnums=0)
        together = jax.jit(jax.vmap(trainer.step), donate_argnums=0)
        batches = stack([batch] * NUM_MEMBERS)
        in_turn = lambda states: [alone(state, batch)[0] for state in states]
        ways: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
            "in turn": (in_turn, fresh(), (alone, fresh()[0], batch)),
            "together": (
                lambda states: together(states, batches)[0],
                stack(fresh()),
                (together, stack(fresh()), batches),
            ),
        }
        found = {how: _measure(*way, num_steps) for how, way in ways.items()}
    table = {}
    for how, (compile_s, update_s, num_bytes) in found.items():
        table[f"{how}: an update of one member"] = f"{update_s / NUM_MEMBERS * 1e3:.1f} ms"
        table[f"{how}: compilation, once"] = f"{compile_s:.1f} s"
        table[f"{how}: memory of the program"] = f"{num_bytes / 2**20:,.0f} MiB"
        whole = compile_s + update_s * config.train.num_steps
        table[f"{how}: runs of {config.train.num_steps} updates an hour"] = (
            f"{NUM_MEMBERS * 3600 / whole:,.1f}"
        )
    ratio = found["in turn"][1] / found["together"][1]
    table["together against in turn"] = f"{ratio:.2f}x the updates per second"
    return table


def _measure(
    advance: Callable[[Any], Any], states: Any, program: Any, num_steps: int
) -> tuple[float, float, int]:
    """Seconds to compile, seconds for an update of all members (median), bytes of the program."""
    function, *inputs = program
    start = time.perf_counter()
    memory = function.lower(*inputs).compile().memory_analysis()
    compile_s = time.perf_counter() - start
    seconds = []
    for _ in range(num_steps):
        start = time.perf_counter()
        states = jax.block_until_ready(advance(states))
        seconds.append(time.perf_counter() - start)
    num_bytes = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return compile_s, statistics.median(seconds[1:]), num_bytes
