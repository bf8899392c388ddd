# SPDX-License-Identifier: Apache-2.0
"""The step is compiled while the state is made, once; what is wrong with it is said at its call."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from jaxlm.bench.step import random_batch
from jaxlm.sharding.feed import local_rows, to_global
from jaxlm.train.setup import build_trainer, compiling_step, on_mesh
from tests.jaxlm.train.conftest import CONFIG


def first_update(trainer):
    rows = local_rows(trainer.mesh, CONFIG.data.batch_size)
    local = {name: x[rows] for name, x in random_batch(CONFIG).items()}
    batch = to_global(local, trainer.mesh, CONFIG.data.batch_size, rows)
    with on_mesh(trainer.mesh, trainer.rules):
        with compiling_step(trainer, CONFIG):
            state = trainer.fresh_state(CONFIG)
        return trainer.step(state, batch)


def test_the_call_compiles_nothing_more(caplog):
    trainer = build_trainer(CONFIG, np.ones(CONFIG.model.vocab_size, np.int32))
    # log_compiles holds in this thread alone, and not where the step is compiled
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax._src.dispatch"):
        first_update(trainer)
    compiled = [r.getMessage() for r in caplog.records if "XLA compilation" in r.getMessage()]
    assert any("jit(init)" in text for text in compiled)
    assert not any("jit(fetched)" in text for text in compiled)


def test_a_step_that_cannot_be_compiled_raises_where_it_is_called():
    def broken(state, batch):
        raise ValueError("no such kernel")

    trainer = build_trainer(CONFIG, np.ones(CONFIG.model.vocab_size, np.int32))
    with pytest.raises(ValueError, match="no such kernel"):
        first_update(dataclasses.replace(trainer, step=jax.jit(broken)))


def test_a_step_that_is_compiled_already_is_left_alone():
    trainer = build_trainer(CONFIG, np.ones(CONFIG.model.vocab_size, np.int32))
    with pytest.raises(TypeError, match="loaded"):
        first_update(dataclasses.replace(trainer, step=_loaded))


def _loaded(state, batch):
    raise TypeError("loaded")
