# SPDX-License-Identifier: Apache-2.0
"""What the other tests rely on: the interpreter finds races and memory that nobody wrote."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

INTERPRET = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
)
SHAPE = (8, 128)


def run(kernel: Any) -> np.ndarray:
    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(SHAPE, jnp.float32),
        scratch_shapes=[pltpu.VMEM(SHAPE, jnp.float32), pltpu.SemaphoreType.DMA],
        interpret=INTERPRET,
    )
    return np.asarray(call(jnp.ones(SHAPE)))


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_a_read_that_does_not_wait_for_its_copy_is_a_race(is_waited_for, capsys):
    def kernel(x_ref, out_ref, scratch_ref, semaphore):
        copy = pltpu.make_async_copy(x_ref, scratch_ref, semaphore)
        copy.start()
        if is_waited_for:
            copy.wait()
        out_ref[...] = scratch_ref[...]
        if not is_waited_for:
            copy.wait()

    said = ""
    try:
        run(kernel)
    except jax.errors.JaxRuntimeError as e:  # from jax 0.12 on; before, the race is only printed
        said = str(e)
    assert ("RACE DETECTED" in said + capsys.readouterr().out) != is_waited_for


def test_memory_that_nobody_has_written_is_nan():
    def kernel(x_ref, out_ref, scratch_ref, semaphore):
        out_ref[:4] = x_ref[:4]

    written = run(kernel)
    assert (written[:4] == 1).all() and np.isnan(written[4:]).all()
