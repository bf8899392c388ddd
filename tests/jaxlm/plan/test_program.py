# SPDX-License-Identifier: Apache-2.0
"""A whole small program, read: four layers of two products, sharded over four chips."""

import dataclasses
import re
from pathlib import Path

import pytest

from jaxlm.model.config import ModelConfig
from jaxlm.plan.chips import CHIPS
from jaxlm.plan.hlo import parse
from jaxlm.plan.kernels import KernelCall, kernel_call
from jaxlm.plan.network import Network
from jaxlm.plan.program import Reading, read, read_with
from jaxlm.plan.text import kernels_and_traffic
from jaxlm.plan.topology import parse_topology

TEXT = (Path(__file__).parent / "programs" / "fsdp_scan.hlo").read_text(encoding="utf-8")
MODEL = ModelConfig(
    vocab_size=512, num_layers=4, embed_dim=64, num_heads=4, ffn_dim=64, window=256,
    layer_pattern=("local", "full"),
)  # fmt: skip
COORDS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0))
PRODUCT = 2 * 2048 * 1024 * 4096


@pytest.fixture(scope="module")
def reading() -> Reading:
    network = Network(parse_topology("v6e:2x2"), COORDS)
    return read(TEXT, MODEL, {"data": 1, "fsdp": 4, "model": 1}, network)


def test_its_work(reading: Reading) -> None:
    assert reading.flops == reading.product_flops == 4 * 7 * PRODUCT
    assert reading.product_flops_once == 7 * PRODUCT
    assert reading.compute_s == pytest.approx(28 * PRODUCT / 918e12)
    assert reading.unknown_loops == ()


def exact(precision: str) -> str:
    """The program's products with operands of f32, in this precision."""
    lines = TEXT.splitlines()
    products = [i for i, line in enumerate(lines) if " convolution(" in line]
    for i in products:
        lines[i] = lines[i].replace("dim_labels", f"operand_precision={{{precision}}}, dim_labels")
    return re.sub(r"\bbf16\[", "f32[", "\n".join(lines))


def test_exact_products_take_their_passes_time_and_no_more_flops() -> None:
    network, mesh = Network(parse_topology("v6e:2x2"), COORDS), {"data": 1, "fsdp": 4, "model": 1}
    once, often = (
        read(exact(how), MODEL, mesh, network) for how in ("default,default", "highest,highest")
    )
    assert often.flops == once.flops == 28 * PRODUCT
    assert often.compute_s == pytest.approx(6 * once.compute_s)
    assert often.schedule_s == pytest.approx(6 * once.schedule_s)
    assert often.best_s - once.best_s > 3 * once.schedule_s


def test_the_best_estimate_is_never_faster_than_perfect_overlap() -> None:
    """Two operations and a copy beside them: the memory's own time is that of all three."""
    text = """ENTRY %main (x: f32[8192,8192]) -> f32[8192,8192] {
  %x = f32[8192,8192]{1,0} parameter(0)
  %begin = (f32[8192,8192]{1,0:S(1)}, f32[8192,8192]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %y = f32[8192,8192]{1,0} add(%x, %x)
  %end = f32[8192,8192]{1,0:S(1)} copy-done(%begin)
  ROOT %z = f32[8192,8192]{1,0} add(%y, %y)
}"""
    network = Network(parse_topology("v6e:2x2"), COORDS)
    found = read(text, MODEL, {"data": 1, "fsdp": 4, "model": 1}, network)
    assert found.fastest_s <= found.best_s <= found.slowest_s


def test_loops_that_are_counted_once_are_told(reading: Reading) -> None:
    assert "AT LEAST" not in "\n".join(kernels_and_traffic(reading))
    unsure = dataclasses.replace(reading, unknown_loops=("while.7",))
    assert "how often while.7 turns" in list(kernels_and_traffic(unsure))[-1]


def test_its_collectives(reading: Reading) -> None:
    found = {c.kind: c for c in reading.collectives}
    assert {k: (c.axes, c.num_run) for k, c in found.items()} == {
        "all-gather": (("fsdp",), 16),
        "reduce-scatter": (("fsdp",), 8),
    }
    assert reading.wire_bytes == reading.exposed_bytes == 24 * 3 * 2**21
    assert reading.network_s == pytest.approx(reading.wire_bytes / 180e9 + 24 * 2e-6)


def test_its_time_lies_between_the_bounds(reading: Reading) -> None:
    assert reading.fastest_s < reading.best_s < reading.slowest_s
    assert reading.exposed_s == pytest.approx(reading.network_s)  # none is asynchronous


def test_its_bytes_are_at_least_what_it_must_move(reading: Reading) -> None:
    """Two f32 matrices a layer, read and written; 4 MB of activations stored and read a layer."""
    weights = 2 * 2 * 4 * 256 * 4096 * 4
    activations = 2 * 4 * 2048 * 1024 * 2
    assert weights + activations < reading.hbm_bytes < 6 * (weights + activations)


def test_gathers_and_sums_that_run_beside_the_products() -> None:
    """Four weights gathered once, four gradients summed: 90 MB each, three of each asynchronous."""
    text = (Path(__file__).parent / "programs" / "async_fsdp.hlo").read_text(encoding="utf-8")
    coords = tuple((x, y, z, 0) for z in range(4) for y in range(4) for x in range(4))
    network = Network(parse_topology("v5p:4x4x4"), coords)
    reading = read(text, MODEL, {"data": 1, "fsdp": 64, "model": 1}, network)
    found = {c.kind: c for c in reading.collectives}
    sent = 2 * 4096 * 11008 * 63 / 64
    for kind, each in (("all-gather", sent), ("all-reduce", 2 * sent)):
        assert (found[kind].num_text, found[kind].axes) == (4, ("fsdp",))
        assert found[kind].wire_bytes == pytest.approx(4 * each)
        assert found[kind].async_bytes == pytest.approx(3 * each)
    assert reading.flops == 11 * 2 * 1024 * 4096 * 11008  # the input has no gradient
    assert 1.5 * sent / 540e9 < reading.exposed_s < 0.5 * reading.network_s  # hides most of 75 %


def kernel(
    name: str, results: str, operands: list[str], path: str = "", sharing: int = 1
) -> KernelCall:
    lines = [f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate(operands)]
    names = ", ".join(f"%p{i}" for i in range(len(operands)))
    call = (
        f'custom-call({names}), custom_call_target="tpu_custom_call", metadata={{op_name="{path}"}}'
    )
    text = "\n".join(
        ["ENTRY %main () -> f32[] {", *lines, f"  ROOT %{name} = {results} {call}", "}"]
    )
    module = parse(text)
    main = module.computations["main"]
    found = kernel_call(main, main.root, MODEL, "v6e", sharing)
    assert found is not None
    return found


HEADS = "bf16[2,4,1024,128]{3,2,1,0}"


@pytest.mark.parametrize(
    ("path", "pairs"),
    [
        ("layers/block_1/attention", 1024 * 1025 / 2),
        ("layers/block_0/attention", 1024 * 256 - 255 * 128),
    ],
)
def test_attention_by_the_pairs_that_its_layers_mask_shows(path: str, pairs: float) -> None:
    """Two products forward, five backward, in the full layer and in the one with a window."""
    operands = ["s32[64]{0}", "s32[2]{0}", "f32[8]{0}", "f32[4]{0}", HEADS, HEADS, HEADS]
    forward = kernel(
        "attention_forward.2", f"({HEADS}, f32[2,4,1,1024]{{3,2,1,0}})", operands, path
    )
    assert forward.flops == pytest.approx(2 * 2 * 128 * 8 * pairs)
    flat = "bf16[8,1024,128]{2,1,0}"
    row = "f32[8,1,1024]{2,1,0}"
    operands = ["s32[64]{0}", "s32[2]{0}", flat, flat, row, row, "s32[2,1,1024]{2,1,0}", flat, flat]
    backward = kernel("attention_backward.1", f"({flat}, {flat}, {flat})", operands, path)
    assert backward.flops == pytest.approx(5 * 2 * 128 * 8 * pairs)


def test_another_projects_kernels_are_counted_by_who_knows_them() -> None:
    """Their work, here of a product of each layer, is added to that of XLA's own."""
    of = lambda within, op: KernelCall("guest", 7e12, 0.5) if op.name == "fusion.57" else None
    network, mesh = Network(parse_topology("v6e:2x2"), COORDS), {"data": 1, "fsdp": 4, "model": 1}
    found, alone = (read_with(f, TEXT, mesh, network) for f in (of, lambda within, op: None))
    (guest,) = found.kernels
    assert (guest.kernel, guest.num_run, guest.flops) == ("guest", 4, 28e12)
    assert found.flops - alone.flops == 28e12
    slower = 28e12 / (0.5 * 918e12)
    assert found.schedule_s > slower and found.best_s - alone.best_s > 0.9 * slower


def test_kernels_of_f32_take_six_passes() -> None:
    exactly = HEADS.replace("bf16", "f32")
    coarse, fine = (
        kernel("attention_forward", f"({x}, f32[2,4,1,1024]{{3,2,1,0}})", [x, x, x])
        for x in (HEADS, exactly)
    )
    assert (coarse.flops, coarse.rate) == (fine.flops, pytest.approx(6 * (fine.rate or 0)))


def test_narrow_heads_leave_the_matrix_unit_idle() -> None:
    narrow = HEADS.replace("128]", "64]")
    wide, half = (
        kernel("attention_forward", f"({x}, f32[2,4,1,1024]{{3,2,1,0}})", [x, x, x])
        for x in (HEADS, narrow)
    )
    assert wide.rate == 2 * half.rate


@pytest.mark.parametrize(("kept", "products"), [(512, 3.0), (256, 3.5)])
def test_cross_entropy_by_its_parts(kept: int, products: float) -> None:
    """Statistics take one product, gradients two, and one more where logits were not kept."""
    table, rows = "f32[512,64]{1,0}", "bf16[4,128,64]{2,1,0}"
    results = (
        "(f32[1,128,64]{2,1,0}, f32[512,64]{1,0}, f32[1,1,128]{2,1,0}, s32[1,1,128]{2,1,0}, "
        f"bf16[1,{kept},128]{{2,1,0}})"
    )
    call = kernel("linear_cross_entropy.7", results, ["s32[3]{0}", table, rows])
    assert call.flops == products * 2 * 128 * 64 * 512


@pytest.mark.parametrize(
    ("name", "operands", "results"),
    [
        ("grouped_matmul.3", ["{rows}", "bf16[{E},512,256]{{2,1,0}}"], "bf16[{R},256]{{1,0}}"),
        (
            "grouped_matmul_dw.1",
            ["{rows}", "bf16[{R},256]{{1,0}}"],
            "f32[{E},512,256]{{2,1,0}}",
        ),
    ],
)
def test_experts_on_more_devices_are_the_same_products(
    name: str, operands: list[str], results: str
) -> None:
    """2,048 rows of a device; where 4 share the experts, its buffer has room for 8,192."""
    found = []
    for R, E, sharing in ((2048, 8, 1), (8192, 2, 4)):
        shape = lambda text, R=R, E=E: text.format(rows=f"bf16[{R},512]{{1,0}}", R=R, E=E)
        given = ["s32[4]{0}", *map(shape, operands)]
        found.append(kernel(name, shape(results), given, sharing=sharing).flops)
    assert found == [2 * 2048 * 512 * 256] * 2


def test_a_program_is_read_with_the_devices_that_share_experts() -> None:
    text = """ENTRY %main (x: bf16[8192,512], w: bf16[2,512,256]) -> bf16[8192,256] {
  %x = bf16[8192,512]{1,0} parameter(0)
  %w = bf16[2,512,256]{2,1,0} parameter(1)
  ROOT %grouped_matmul.1 = bf16[8192,256]{1,0} custom-call(%x, %w), custom_call_target="tpu_custom_call"
}"""
    network = Network(parse_topology("v6e:2x2"), COORDS)
    found = read(text, MODEL, {"data": 1, "fsdp": 1, "expert": 4, "model": 1}, network)
    assert found.flops == 2 * 2048 * 512 * 256


def test_every_chip_has_rates() -> None:
    for chip in CHIPS.values():
        operands = [HEADS, HEADS, HEADS]
        assert not chip.is_tpu or kernel("attention_forward", HEADS, operands).rate
