# SPDX-License-Identifier: Apache-2.0
"""A schedule is read before the compiler is done, and says what the compiled program says."""

import re
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxlm.cli.gin_edge import load
from jaxlm.plan.answer import without_probes
from jaxlm.plan.network import Network
from jaxlm.plan.program import read
from jaxlm.plan.schedule import BUFFERS, memory_of, schedule_of
from jaxlm.plan.topology import parse_topology

CONFIGS = Path(__file__).parents[3] / "configs"
# Of a small step on v6e by libtpu 0.0.42.1, whose memory_analysis says argument 4194304,
# output 2097696, alias 2097152; some of its constants and scalars are left out.
ASSIGNMENT = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <2 reduce_sum.2 @0> (size=512,offset=0): f32[]{:T(128)}
allocation 1: size 2097152, parameter 0, shape |bf16[4,256,1024]| at ShapeIndex {}, maybe-live-out:
 value: <133 param.4 @0> (size=2097152,offset=0): bf16[4,256,1024]{2,1,0:T(8,128)(2,1)}
allocation 2: size 2097152, parameter 1, shape |bf16[1024,1024]| at ShapeIndex {}:
 value: <130 param.5 @0> (size=2097152,offset=0): bf16[1024,1024]{1,0:T(8,128)(2,1)}
allocation 3: size 512, maybe-live-out:
 value: <114 add.26 @0> (size=512,offset=0): s32[]{:T(128)}
allocation 4: size 512, constant:
 value: <127 constant.66.clone @0> (size=512,offset=0): s32[]{:T(128)}
allocation 14: size 32, output shape is |(bf16[4,256,1024], f32[])|, maybe-live-out:
 value: <154 tuple.59{} @0> (size=32,offset=0): (bf16[4,256,1024]{2,1,0}, f32[]{:T(128)})
allocation 23: size 512, color 6, preallocated-temp:
 value: <116 sub.38 @6> (size=512,offset=0): s32[]{:T(128)S(6)}
allocation 25: size 81952, preallocated-temp:
 value: <117 broadcast.1 @0> (size=512,offset=0): f32[]{:T(128)}
allocation 26: size 23068672, color 1, preallocated-temp:
 value: <120 all-gather.8 @1> (size=2097152,offset=0): bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}
"""


class Compiler:
    """Stands for a lowered step: writes what it has, and then takes its time."""

    def __init__(self, *written: str, error: Exception | None = None) -> None:
        self.written, self.error = written, error
        self.go_on, self.is_done = threading.Event(), False

    def compile(self, options: dict[str, Any]) -> None:
        for name in self.written:
            text = ASSIGNMENT if "assignment" in name else "the program"
            (Path(options["xla_dump_to"]) / f"module_0000.{name}.txt").write_text(text, "utf-8")
        if self.error is not None:
            raise self.error
        self.go_on.wait(60)
        self.is_done = True


FILES = (
    "before_optimizations", "after_optimizations_before_buffer_assignment", "after_optimizations",
    "after_optimizations-buffer-assignment", "after_optimizations-buffer-assignment-values",
    "after_optimizations_after_buffer_assignment",
)  # fmt: skip


def test_it_is_there_before_the_machine_code(tmp_path: Path) -> None:
    compiler = Compiler(*FILES)
    text, memory = schedule_of(compiler, tmp_path)
    assert not compiler.is_done
    compiler.go_on.set()
    assert (text, memory) == ("the program", memory_of(ASSIGNMENT))
    assert not list(tmp_path.iterdir())


def test_what_the_compiler_refuses_is_raised(tmp_path: Path) -> None:
    """It writes the buffers of a program that does not fit, too."""
    compiler = Compiler(*FILES[:-1], error=RuntimeError("RESOURCE_EXHAUSTED: 40.00G of 31.25G hbm"))
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        schedule_of(compiler, tmp_path)


def test_memory_is_that_of_buffers_in_hbm() -> None:
    assert memory_of(ASSIGNMENT) == {
        "argument": 4194304,
        "output": 2097696,
        "alias": 2097152,
        "temp": 81952 + 512,
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_says_what_the_compiled_program_says(tmp_path: Path) -> None:
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'jaxlm[tpu]'")
    from jaxlm.plan.compile_step import devices_of, lowered_step

    small = ["DataConfig.batch_size=16", "TrainConfig.num_micro_batches=1", "MeshConfig.data=1"]
    small += ["ModelConfig.num_layers=2", 'ModelConfig.remat="products"', "MeshConfig.fsdp=4"]
    config = without_probes(load([str(CONFIGS / "dense_110m.gin")], small))
    topology = parse_topology("v6e:2x2")
    lowered, trainer = lowered_step(config, devices_of(topology))

    class Keeping:
        def compile(self, options: dict[str, Any]) -> None:
            self.compiled = lowered.compile(options)
            kept.set()

    kept, keeping = threading.Event(), Keeping()
    text, memory = schedule_of(keeping, tmp_path)
    assert not kept.is_set()
    kept.wait()
    compiled = keeping.compiled
    sizes = compiled.memory_analysis()
    for kind in ("argument", "output", "alias"):
        assert memory[kind] == getattr(sizes, f"{kind}_size_in_bytes")
    network = Network(topology, ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0)))
    mesh = dict(trainer.mesh.shape)
    at_end = read(compiled.as_text(), config.model, mesh, network)
    assert read(text, config.model, mesh, network) == at_end


@pytest.mark.slow
def test_memory_is_what_the_compiler_refuses_a_program_for(tmp_path: Path) -> None:
    """16 layers whose 4 M x 1024 inputs are kept for the backward pass."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'jaxlm[tpu]'")
    from jaxlm.plan.compile_step import devices_of

    mesh = jax.make_mesh((4,), ("x",), devices=devices_of(parse_topology("v6e:2x2")))
    rows = jax.NamedSharding(mesh, jax.P("x"))
    x = jax.ShapeDtypeStruct((2**22, 1024), jnp.bfloat16, sharding=rows)
    w = jax.ShapeDtypeStruct(
        (16, 1024, 1024), jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P())
    )
    layers = lambda w, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]
    step = jax.jit(jax.grad(lambda w, x: layers(w, x).astype(jnp.float32).sum()))
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        step.lower(w, x).compile({"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True})
    (buffers,) = tmp_path.glob(BUFFERS)
    sizes = memory_of(buffers.read_text(encoding="utf-8"))
    total = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    said = re.search(r"\(([\d.]+)G\) exceeds", str(refused.value))
    assert said is not None
    assert total / 2**30 == pytest.approx(float(said[1]), rel=0.01)
