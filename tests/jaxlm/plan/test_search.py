# SPDX-License-Identifier: Apache-2.0
"""Search and cache, with a compiler that gives the same small program for everything."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from jaxlm.cli.gin_edge import load
from jaxlm.core.errors import ConfigError
from jaxlm.plan import compiled
from jaxlm.plan.advice import changes
from jaxlm.plan.answer import as_json, make_plan
from jaxlm.plan.page import plan_page
from jaxlm.plan.search import MARGIN, OWN, candidates, search, table
from jaxlm.plan.text import screen
from jaxlm.plan.topology import parse_topology

HERE = Path(__file__).parent
DENSE = HERE.parents[2] / "configs" / "dense_110m.gin"
CONFIG = load([str(DENSE)], [])
TOPOLOGY = parse_topology("v6e:2x2")
SIZES = {
    "argument": 400, "output": 390, "alias": 380, "temp": 5000, "generated_code": 90,
}  # fmt: skip


class Compiler:
    """Stands for the compiling process; counts what it is asked for."""

    def __init__(self) -> None:
        self.count = 0
        self.saved: list[str | None] = []
        self.error: str | None = None

    def __call__(self, part: Path, name: str, progress: Any) -> str | None:
        self.count += 1
        self.saved.append(json.loads((part / "request.json").read_text(encoding="utf-8"))["save"])
        if self.error is not None:
            return self.error
        text = (HERE / "programs" / "fsdp_scan.hlo").read_text(encoding="utf-8")
        with gzip.open(part / "program.hlo.gz", "wt", encoding="utf-8") as f:
            f.write(text)
        facts = {
            "mesh": {"data": 4, "fsdp": 1, "model": 1}, "memory": SIZES, "parameters": 100,
            "optimizer_state": 200, "stored": 4000,
            "coords": [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]],
        }  # fmt: skip
        (part / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        return None


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    found = Compiler()
    monkeypatch.setattr(compiled, "_run_child", found)
    return found


def kept() -> Path:
    """The one answer in the cache."""
    (folder,) = Path(os.environ["XDG_CACHE_HOME"], "jaxlm", "plans").iterdir()
    return folder


def silent(label: str, frac: float | None, detail: str) -> None:
    pass


def test_a_search_that_is_given_again_compiles_nothing(compiler: Compiler) -> None:
    found = search("x", CONFIG, TOPOLOGY, 3, silent)
    assert compiler.count == len(found) in (3, 4)
    assert "the config as it is" in [one.what for one, _ in found]
    assert len(list(table(found))) == len(found) + 1
    search("x", CONFIG, TOPOLOGY, 3, silent)
    assert compiler.count == len(found)


def test_a_search_goes_on_where_it_was_stopped(compiler: Compiler) -> None:
    search("x", CONFIG, TOPOLOGY, 1, silent)
    before = compiler.count
    found = search("x", CONFIG, TOPOLOGY, 4, silent)
    assert compiler.count == len(found)
    assert before < len(found)


def test_what_does_not_fit_corrects_the_arithmetic_of_its_kind(compiler: Compiler) -> None:
    compiler.error = (
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (1.50T) exceeds"
    )
    found = search("x", CONFIG, TOPOLOGY, 5, silent)
    tried = [one.config.model.remat for one, _ in found if one.what != "the config as it is"]
    assert len(tried) == len(set(tried)) > 1  # one of each policy, and then no more of it
    assert all(plan.memory.total >= 1.5 * 2**40 for _, plan in found)


def test_what_does_not_fit_uses_up_no_place_and_the_config_is_there(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two are refused; the config itself is far too large by arithmetic."""
    large = load(
        [str(DENSE)],
        ["DataConfig.batch_size=4096", "MeshConfig.data=-1", "TrainConfig.num_micro_batches=1"],
    )
    found = candidates(large, TOPOLOGY)
    (own,) = (one for one in found if one.what == OWN)
    assert own.estimate.memory.total > MARGIN * TOPOLOGY.chip.hbm_bytes

    def run(part: Path, name: str, progress: Any) -> str | None:
        refused = "RESOURCE_EXHAUSTED: Used 33.00G of 31.25G hbm"
        compiler.error = refused if compiler.count < 2 else None
        return compiler(part, name, progress)

    monkeypatch.setattr(compiled, "_run_child", run)
    ways = [(one.what, plan.fits) for one, plan in search("x", large, TOPOLOGY, 1, silent)]
    assert [fits for _, fits in ways] == [True, True, False, False]
    assert OWN in [what for what, fits in ways if fits]


def test_rates_and_lengths_share_a_program_and_sizes_do_not(compiler: Compiler) -> None:
    config_of = lambda *sets: load(
        [str(HERE.parents[2] / "configs" / "dense_110m.gin")], list(sets)
    )
    make_plan("x", CONFIG, TOPOLOGY, silent)
    make_plan(
        "x", config_of("OptimConfig.peak_lr=1e-3", "TrainConfig.num_steps=500"), TOPOLOGY, silent
    )
    assert compiler.count == 1
    make_plan("x", config_of("ModelConfig.num_layers=6"), TOPOLOGY, silent)
    make_plan("x", CONFIG, parse_topology("v6e:2x4"), silent)
    assert compiler.count == 3


def test_an_executable_is_compiled_on_its_own_and_leaves_the_plan_as_it_is(
    compiler: Compiler, tmp_path: Path
) -> None:
    plans = [make_plan("x", CONFIG, TOPOLOGY, silent, save) for save in (None, tmp_path / "step")]
    assert compiler.saved == [None, str(tmp_path / "step")]
    assert plans[0].memory == plans[1].memory
    assert len(list((tmp_path / "jaxlm" / "plans").iterdir())) == 1


def test_memory_by_owner_adds_up_to_the_compilers_count(compiler: Compiler) -> None:
    memory = make_plan("x", CONFIG, TOPOLOGY, silent).memory
    assert memory.total == 400 + 390 - 380 + 5000 + 90
    assert (memory.parameters, memory.optimizer_state, memory.activations) == (100, 200, 4000)


def test_what_the_compiler_refuses_for_memory_is_an_answer_and_is_kept(compiler: Compiler) -> None:
    compiler.error = (
        "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. "
        "Used 40.00G of 31.25G hbm. Exceeded hbm capacity by 8.75G."
    )
    for _ in range(2):
        plan = make_plan("x", CONFIG, TOPOLOGY, silent)
        assert not plan.fits
        assert plan.memory.total == 40 * 2**30
    assert compiler.count == 1


def test_any_other_failure_is_told_and_not_kept(compiler: Compiler) -> None:
    compiler.error = "jax.errors.JaxRuntimeError: INTERNAL: Mosaic failed to compile"
    for _ in range(2):
        with pytest.raises(ConfigError, match="does not compile.*Mosaic"):
            make_plan("x", CONFIG, TOPOLOGY, silent)
    assert compiler.count == 2


@pytest.mark.parametrize("name", ["facts.json", "program.hlo.gz", "sums.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"garbage", "half", "flipped", "gone"])
def test_a_damaged_answer_is_compiled_again(compiler: Compiler, name: str, content: Any) -> None:
    before = make_plan("x", CONFIG, TOPOLOGY, silent)
    path = kept() / name
    data = path.read_bytes()
    path.unlink()
    if content != "gone":
        flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
        path.write_bytes({"half": data[: len(data) // 2], "flipped": flipped}.get(content, content))
    for _ in range(2):
        assert make_plan("x", CONFIG, TOPOLOGY, silent) == before
    assert compiler.count == 2


@pytest.mark.parametrize("content", [b"", b"{}", b'{"needed": 1'])
def test_a_damaged_refusal_is_asked_for_again(compiler: Compiler, content: bytes) -> None:
    compiler.error = "RESOURCE_EXHAUSTED: Used 40.00G of 31.25G hbm."
    make_plan("x", CONFIG, TOPOLOGY, silent)
    (kept() / "failed.json").write_bytes(content)
    for _ in range(2):
        assert make_plan("x", CONFIG, TOPOLOGY, silent).memory.total == 40 * 2**30
    assert compiler.count == 2


def test_an_emptied_folder_is_filled_again(compiler: Compiler) -> None:
    make_plan("x", CONFIG, TOPOLOGY, silent)
    for path in kept().iterdir():
        path.unlink()
    for _ in range(2):
        make_plan("x", CONFIG, TOPOLOGY, silent)
    assert compiler.count == 2


@pytest.mark.parametrize(
    ("variable", "value", "is_new"),
    [
        ("JAX_DEFAULT_MATMUL_PRECISION", "highest", True),
        ("JAX_ENABLE_X64", "1", True),
        ("JAXLM_COMPILER_OPTIONS", "xla_a=1", True),
        ("LIBTPU_INIT_ARGS", "--xla_a=1", True),
        ("XLA_FLAGS", "--xla_a=1", True),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=3 --xla_dump_to=/tmp/x", False),
        ("JAX_LOGGING_LEVEL", "DEBUG", False),
    ],
)
def test_what_changes_a_program_makes_another_answer(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, is_new: bool
) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    make_plan("x", CONFIG, TOPOLOGY, silent)
    monkeypatch.setenv(variable, value)
    make_plan("x", CONFIG, TOPOLOGY, silent)
    assert compiler.count == 1 + is_new


def test_a_refusal_is_told_with_the_compilers_figures(compiler: Compiler) -> None:
    """Also where arithmetic counts more: what "HLO temporaries" names is all that is needed."""
    said = "the total memory required for HLO temporaries ({}G) exceeds available HBM (31.25G)."
    for needed, rows in ((31.88, 3200), (400.0, 32)):
        compiler.error = f"jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: {said.format(needed)}"
        config = load([str(DENSE)], [f"DataConfig.batch_size={rows}"])
        plan = make_plan("x", config, TOPOLOGY, silent)
        assert plan.memory.total == pytest.approx(needed * 2**30)
        words = " ".join(screen(plan, [], None).split())
        assert f"DOES NOT FIT, {needed - 31.25:,.2f} GiB too much by the compiler's count" in words
        assert said.format(needed) in words
        assert "arithmetic, which is rough" not in words
        assert as_json(plan, None)["answer"] == "refused"
        assert said.format(needed) in plan_page(plan, [], None)


def test_a_refusal_without_figures_is_still_one(compiler: Compiler) -> None:
    compiler.error = "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: no figures"
    plan = make_plan("x", CONFIG, TOPOLOGY, silent)
    text = screen(plan, changes(plan), None)
    assert "DOES NOT FIT\n" in text
    assert "the compiler: no figures" in text
    assert as_json(plan, None)["hbm_total_bytes"] == plan.estimate.memory.total
