# SPDX-License-Identifier: Apache-2.0
"""A saved step is the step, and refuses to be another one."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from jaxlm.config import RunConfig
from jaxlm.core.errors import RunError
from jaxlm.data.config import CorpusConfig, DataConfig, TokenizerConfig
from jaxlm.model.config import ModelConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.plan.compile_step import lowered_step
from jaxlm.plan.executable import open_step, save
from jaxlm.plan.identity import SETTINGS, xla_flags
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


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("JAXLM_COMPILER_OPTIONS", "xla_cpu_enable_fast_math=true", r"options\.xla_cpu_enable_fast_math"),
        ("XLA_FLAGS", "--xla_cpu_enable_fast_math=true", r"XLA_FLAGS\.xla_cpu_enable_fast_math"),
    ],
)  # fmt: skip
def test_it_refuses_another_compiler_by_what_it_is_told(
    saved: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: str
) -> None:
    monkeypatch.setenv(variable, f"{os.environ.get(variable, '')} {value}")
    with pytest.raises(RunError, match=f"{named} there None, here true"):
        open_step(CONFIG, saved)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (jax.default_matmul_precision("bfloat16"), "jax_default_matmul_precision there None, here bfl"),
        (jax.enable_x64(True), "jax_enable_x64 there False, here True"),
        (jax.numpy_dtype_promotion("strict"), "jax_numpy_dtype_promotion there standard, here strict"),
        (jax.threefry_partitionable(False), "jax_threefry_partitionable there True, here False"),
    ],
)  # fmt: skip
def test_it_refuses_other_numbers_by_jaxs_setting(
    saved: Path, other: contextlib.AbstractContextManager[None], named: str
) -> None:
    with other, pytest.raises(RunError, match=named):
        open_step(CONFIG, saved)


def test_flags_that_change_no_program_are_passed_over(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = "--xla_force_host_platform_device_count=2 --xla_dump_to=/tmp/x"
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {flags}")
    open_step(CONFIG, saved)


def test_flags_in_a_file_are_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flags").write_text("--xla_a --xla_b=3\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    assert xla_flags() == {"xla_a": "true", "xla_b": "3"}


NOT_IN_ALL = {  # of the versions from 0.10.2 on: dropped before 0.12, and new there
    "jax_exec_time_optimization_effort",
    "jax_memory_fitting_effort",
    "jax_pallas_use_mosaic_gpu",
    "jax_ragged_dot_use_gpu_pallas_triton_lowering",
    "jax_accurate_erf_inv",
    "jax_custom_jvp3",
    "jax_use_hlo_logistic_lowering",
}


def test_every_setting_is_one_that_jax_has() -> None:
    assert set(SETTINGS) - set(jax.config.values) <= NOT_IN_ALL <= set(SETTINGS)


def flip(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda x: x[: len(x) // 2], lambda x: x.partition(b"\n")[0], lambda x: x + b"x", flip],
)
def test_damage_is_found_before_anything_is_loaded(
    saved: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "step").write_bytes(damage(saved.read_bytes()))
    with pytest.raises(RunError, match=r"is damaged.*another sha256.*make it anew"):
        open_step(CONFIG, tmp_path / "step")


def test_what_cannot_be_loaded_here_is_one_line(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum holds, but the runtime refuses it, as it does code for a CPU with more."""
    monkeypatch.setattr(serialize_executable, "serialize", lambda _: (b"garbage", None, None))
    save(CONFIG, jax.devices(), None, tmp_path / "step")
    load = open_step(CONFIG, tmp_path / "step")
    with pytest.raises(RunError, match="cannot be loaded here"):
        load(build_trainer(CONFIG, BYTES))


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b"[" * 9999, b"\x80\x04", b'{"format": "other"}\nx']
)
def test_a_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "step").write_bytes(content)
    with pytest.raises(RunError, match="--executable"):
        open_step(CONFIG, tmp_path / "step")
