# SPDX-License-Identifier: Apache-2.0
"""Analytic answers against other counts, and what is said of configs that cannot be planned."""

import dataclasses
import json
import re
import time
from pathlib import Path

import pytest

from jaxlm.cli.gin_edge import load
from jaxlm.cli.main import main
from jaxlm.core.errors import ConfigError
from jaxlm.plan.advice import changes, neighbours
from jaxlm.plan.analytic import estimate
from jaxlm.plan.answer import make_plan
from jaxlm.plan.page import plan_page
from jaxlm.plan.search import candidates, is_pareto, search
from jaxlm.plan.text import NO_COST, WIDTH, screen
from jaxlm.plan.topology import parse_topology

CONFIGS = Path(__file__).parents[3] / "configs"


def plan_of(name: str, topology: str, *overrides: str):
    config = load([str(CONFIGS / f"{name}.gin")], list(overrides))
    return make_plan(name, config, parse_topology(topology), None)


@pytest.mark.parametrize(
    ("name", "topology", "teraflops"),
    [
        ("llama2_7b", "v5p:4x4x4", 702.3),
        ("llama2_70b", "v5p:8x8x8", 3509.3),
        ("llama31_8b", "v6e:16x16", 1686.6),
        ("llama31_70b", "tpu7x:4x4x4", 7360.1),
    ],
)
def test_model_flops_of_a_device_are_those_that_others_count(
    name: str, topology: str, teraflops: float
) -> None:
    """By MaxText's formula (causal attention halved) for the same shape and tokens per device."""
    assert plan_of(name, topology).model_flops / 1e12 == pytest.approx(teraflops, rel=1e-3)


def test_a_hand_count_of_llama2_7b() -> None:
    tokens, layers, wide, inner, vocab = 16384, 32, 4096, 11008, 32000
    products = layers * (4 * wide**2 + 3 * wide * inner) + vocab * wide
    attention = layers * 2 * wide * (4096 + 1) / 2
    plan = plan_of("llama2_7b", "v5p:4x4x4")
    assert plan.model_flops == pytest.approx(3 * 2 * tokens * (products + attention), rel=1e-9)
    state = 4 * (products + vocab * wide) / 32  # halves of the slice; the norms are 0.004 % more
    assert plan.memory.parameters == pytest.approx(state, rel=0.01)
    assert plan.memory.optimizer_state == pytest.approx(2 * state, rel=0.01)


def test_parameters_are_split_and_replicated_as_the_mesh_says() -> None:
    one = plan_of("llama2_7b", "v5p:4x4x4", "MeshConfig.fsdp=16", "MeshConfig.data=4")
    four = plan_of("llama2_7b", "v5p:4x4x4", "MeshConfig.data=1")
    assert one.memory.parameters == pytest.approx(4 * four.memory.parameters, rel=0.01)


def test_shared_experts_move_the_whole_buffer_of_rows_through_memory() -> None:
    """Elementwise work does not know which rows came (docs/moe.md); products and links do."""
    one, eight = (
        plan_of("mixtral_8x7b", "v5p:4x4x8", f"MeshConfig.expert={n}").estimate.work for n in (1, 8)
    )
    assert eight.hbm_bytes > 2 * one.hbm_bytes
    assert eight.model_flops == one.model_flops


def test_the_first_answer_takes_milliseconds() -> None:
    config, topology = load([str(CONFIGS / "dense_1b_fsdp.gin")], []), parse_topology("v6e:16x16")
    start = time.process_time()
    estimate(config, topology)
    assert time.process_time() - start < 0.1


def test_what_does_not_fit_is_told_by_how_much_and_what_would() -> None:
    plan = plan_of("llama31_405b", "v5p:8x8x8")
    text = screen(plan, changes(plan), None)
    missing = (plan.memory.total - plan.capacity) / 2**30
    assert f"DOES NOT FIT, {missing:,.2f} GiB too much" in text
    assert changes(plan)
    close = plan_of("llama31_8b", "v6e:16x16")  # which the compiler makes fit
    words = " ".join(screen(close, changes(close), None).split())
    assert "MAY NOT FIT, 2.23 GiB too much by arithmetic, which is rough" in words
    tight = plan_of("dense_1b_fsdp", "v6e:2x2", "DataConfig.batch_size=512")
    found = changes(tight)
    assert not tight.fits
    assert "fits; step" in found[0].effect


def test_many_micro_batches_are_among_what_would_fit() -> None:
    """One chip for a 1B: 256 rows, one at a time."""
    found = changes(plan_of("dense_1b_fsdp", "v6e:1x1"))
    assert "TrainConfig.num_micro_batches = 256" in [change.what for change in found]
    for change in found:
        names = [setting.partition(" = ")[0] for setting in change.what.split(", ")]
        assert len(names) == len(set(names)), "one field, two values"


def test_what_nothing_would_fit_is_told() -> None:
    (found,) = changes(plan_of("llama31_405b", "v6e:16x16"))
    assert found.what.startswith("nothing found that may fit")
    assert "smaller model" in found.effect


def test_the_expert_axis_is_advised_to_models_with_experts_alone() -> None:
    named = lambda name: [
        what
        for what, _ in neighbours(
            load([str(CONFIGS / f"{name}.gin")], []), parse_topology("v5p:4x4x4")
        )
        if "expert" in what
    ]
    assert not named("llama2_7b")
    assert named("mixtral_8x7b")


@pytest.mark.parametrize(
    ("topology", "overrides", "named"),
    [
        ("v6e:16x16", ["MeshConfig.fsdp=100"], "fsdp=100.*256"),
        (
            "v6e:2x2",
            ["MeshConfig.fsdp=1", "MeshConfig.data=3"],
            r"data=3 needs 3 devices, found 4; set one axis to -1 to take what is there, or take "
            r"another --topology than v6e:2x2$",
        ),
        (
            "v6e:16x16",
            ["MeshConfig.fsdp=-1", "ModelConfig.embed_dim=2112"],
            "embed_dim=2112.*fsdp=256",
        ),
        ("v6e:16x16", ["MeshConfig.fsdp=32", "MeshConfig.model=8"], "num_kv_heads=4.*model=8"),
        ("v6e:16x16", ["DataConfig.batch_size=500"], "batch_size=500.*256"),
    ],
)
def test_a_mesh_that_does_not_fit_is_named_with_what_it_does_not_divide(
    topology: str, overrides: list[str], named: str
) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of("dense_1b_fsdp", topology, *overrides)
    assert re.search(named, str(error.value))


def test_slices_that_are_not_there_are_refused_by_arithmetic_too() -> None:
    told = "MeshConfig.slice=2, but the devices belong to 1 slice; set it to 1"
    with pytest.raises(ConfigError, match=told):
        plan_of("debug", "v6e:2x2", "MeshConfig.slice=2")
    config = load([str(CONFIGS / "debug.gin")], ["MeshConfig.slice=2"])
    with pytest.raises(ConfigError, match=told):
        search("debug", config, parse_topology("v6e:2x2"), 1, lambda *_: None)


def test_two_slices_sum_gradients_over_a_slower_network() -> None:
    """Each device holds a 16th of the parameters: twice its share, less half, per micro-batch."""
    one, two = (
        plan_of("dense_1b_fsdp", f"v6e:4x4{slices}", f"MeshConfig.slice={n}", rows).estimate.work
        for slices, n, rows in (
            ("", 1, "DataConfig.batch_size=128"), (":2", 2, "DataConfig.batch_size=256"),
        )
    )  # fmt: skip
    plan = plan_of("dense_1b_fsdp", "v6e:4x4:2", "MeshConfig.slice=2")
    sent = plan.memory.parameters * plan.config.train.num_micro_batches
    assert two.wire_bytes - one.wire_bytes == pytest.approx(sent)
    assert two.slowest_s - one.slowest_s == pytest.approx(sent / 12.5e9)


def test_without_the_compiler_the_install_line_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["plan", str(CONFIGS / "dense_1b_fsdp.gin"), "--topology", "v6e:2x2"]) == 2
    assert "pip install 'jaxlm[tpu]'" in capsys.readouterr().err


def test_a_plan_is_one_screen_a_page_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "p.json"), "--html", str(tmp_path / "p.html")]
    command = ["plan", str(CONFIGS / "dense_1b_fsdp.gin"), "--topology", "v6e:16x16", "--analytic"]
    assert main([*command, *files, "--price", "2.7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) <= 45
    values = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    hours = values["predicted"]["chip_hours"]
    assert values["predicted"]["cost"] == pytest.approx(2.7 * hours)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "predicted" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_two_plans_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    configs = [str(CONFIGS / f"{name}.gin") for name in ("llama2_7b", "dense_1b_fsdp")]
    assert main(["plan", *configs, "--compare", "--topology", "v5p:4x4x4", "--analytic"]) == 0
    assert "predicted step" in capsys.readouterr().out


@pytest.mark.parametrize("topology", ["v5p:4x4x4", "h100:8"])
def test_side_by_side_says_of_time_and_cost_what_a_plan_says(
    topology: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of GPUs only the bound: no step, no MFU, no cost, and that there is none."""
    config = str(CONFIGS / "dense_110m.gin")
    options = ["--topology", topology, "--analytic", "--price", "3"]
    main(["plan", config, config, "--compare", *options])
    both = capsys.readouterr().out
    main(["plan", config, *options])
    one = capsys.readouterr().out
    is_tpu = topology.startswith("v5p")
    for name in ("predicted step", "predicted MFU", "predicted chip-hours", "predicted cost"):
        assert (name in both) == is_tpu
    assert "perfect overlap, ms" in both
    assert (NO_COST in both) == (NO_COST in one) == (not is_tpu)
    assert ("cost" in one.replace(NO_COST, "")) == is_tpu


def test_candidates_are_the_same_update_and_divide() -> None:
    config, topology = load([str(CONFIGS / "llama31_8b.gin")], []), parse_topology("v6e:16x16")
    found = candidates(config, topology)
    assert len(found) > 50
    times = [one.middle_s for one in found]
    assert times == sorted(times)
    for one in found:
        assert one.config.data == config.data
        assert dataclasses.replace(one.config.model, remat=config.model.remat) == config.model


def test_the_pareto_front_holds_what_no_other_beats() -> None:
    plans = [
        plan_of("dense_1b_fsdp", "v6e:16x16", f"ModelConfig.remat={remat!r}")
        for remat in ("none", "full", "block_inputs")
    ]
    front = [plan.config.model.remat for plan in plans if is_pareto(plan, plans)]
    assert front == ["none", "full", "block_inputs"][: len(front)] or "full" in front


def test_a_page_of_a_plan_that_does_not_fit_says_so() -> None:
    plan = plan_of("llama31_405b", "v5p:8x8x8")
    assert "does not fit" in plan_page(plan, changes(plan), None)
