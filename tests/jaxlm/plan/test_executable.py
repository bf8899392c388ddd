# SPDX-License-Identifier: Apache-2.0
"""A saved step is the step, and refuses to be another one."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxlm.config import RunConfig
from jaxlm.core.errors import RunError
from jaxlm.data.config import CorpusConfig, DataConfig, TokenizerConfig
from jaxlm.model.config import ModelConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.plan.compile_step import lowered_step
from jaxlm.plan.executable import open_step, save
from jaxlm.sharding.config import MeshConfig
from jaxlm.train.config import TrainConfig
from jaxlm.train.setup import abstract_batch, build_trainer, on_mesh

CONFIG = RunConfig(
    model=ModelConfig(vocab_size=320, num_layers=1, embed_dim=16, num_heads=2, ffn_dim=32),
    data=DataConfig(
        corpora=(CorpusConfig(name="x", source="stdlib"),),
        tokenizer=TokenizerConfig(vocab_size=320), seq_len=16, batch_size=4,
    ),
    optim=OptimConfig(peak_lr=1e-2, schedule="constant"),
    train=TrainConfig(num_steps=5),
    mesh=MeshConfig(data=1),
)  # fmt: skip
BYTES = np.ones(320, np.int32)


def change(config: RunConfig, section: str, **fields: Any) -> RunConfig:
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **fields)}
    )


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """An executable that came out of JAX's cache does not run when it is written out once more."""

    def switch(is_on: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", is_on)
        compilation_cache.reset_cache()  # it asks once only

    switch(False)
    try:
        yield
    finally:
        switch(True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("executable") / "step"
    devices = jax.devices()[:1]
    lowered, _ = lowered_step(CONFIG, devices)
    with without_cache():
        save(CONFIG, devices, lowered.compile(), path)
    return path


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    only = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: only)


def updated(config: RunConfig, path: Path | None) -> Any:
    """Parameters after one update, by the step of the file or by a compiled one."""
    trainer = build_trainer(config, BYTES)
    if path is not None:
        trainer = open_step(config, path)(trainer)
    ints = np.random.default_rng(0).integers(0, 320, (4, 16)).astype(np.int32)
    batch = {
        name: jax.device_put(
            np.ones((4, 16), np.float32) if name == "weights" else ints, x.sharding
        )
        for name, x in abstract_batch(config, trainer.mesh, 4).items()
    }
    with on_mesh(trainer.mesh):
        state, _ = trainer.step(trainer.fresh_state(config), batch)
    return jax.tree.map(np.asarray, state.params)


@pytest.mark.slow
def test_it_computes_what_the_compiled_step_computes(saved: Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, updated(CONFIG, saved), updated(CONFIG, None))


@pytest.mark.slow
def test_rate_length_and_seed_are_inputs(saved: Path) -> None:
    other = change(change(CONFIG, "optim", peak_lr=5e-2), "train", num_steps=9, seed=3)
    jax.tree.map(np.testing.assert_array_equal, updated(other, saved), updated(other, None))


@pytest.mark.parametrize(
    ("section", "fields", "named"),
    [
        ("model", {"remat": "full"}, "config.model.remat there none, here full"),
        ("data", {"batch_size": 8}, "config.data.batch_size there 4, here 8"),
        ("optim", {"name": "lion"}, "config.optim.name"),
        ("train", {"num_micro_batches": 2}, "config.train.num_micro_batches"),
        ("train", {"probe_every": None}, "config.train.probe_every there 20, here None"),
        ("train", {"offload_optimizer": True}, "config.train.offload_optimizer"),
    ],
)
def test_it_refuses_another_program_by_name(
    saved: Path, section: str, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(RunError, match=named):
        open_step(change(CONFIG, section, **fields), saved)


def test_it_refuses_other_versions(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--other")
    with pytest.raises(RunError, match=r"versions\.flags"):
        open_step(CONFIG, saved)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\x80\x04", b'{"format": "other"}\nx'])
def test_a_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "step").write_bytes(content)
    with pytest.raises(RunError, match="--executable"):
        open_step(CONFIG, tmp_path / "step")
