# SPDX-License-Identifier: Apache-2.0
"""FLOPs of products, against a count by hand or by walking through every window."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlm.plan.hlo import parse
from jaxlm.plan.products import _pairs, product_flops, product_work

PROGRAMS = Path(__file__).parent / "programs"


def flops(line: str, *operands: str, of: Callable[..., float] = product_flops) -> float:
    """Of one operation whose operands have these shapes."""
    names = [f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate(operands)]
    text = "\n".join(["ENTRY %main () -> f32[] {", *names, f"  ROOT {line}", "}"])
    module = parse(text)
    computation = module.computations["main"]
    return of(module, computation, computation.root)


def test_a_dot_takes_two_per_multiply_add() -> None:
    line = "%d = f32[5,3,7]{2,1,0} dot(%p0, %p1), lhs_batch_dims={0}, lhs_contracting_dims={2}"
    assert flops(line, "f32[5,3,11]{2,1,0}", "f32[5,11,7]{2,1,0}") == 2 * 5 * 3 * 7 * 11


def test_a_plain_product_as_a_convolution() -> None:
    line = "%c = bf16[64,32]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf"
    assert flops(line, "bf16[64,128]{1,0}", "bf16[128,32]{1,0}") == 2 * 64 * 32 * 128


@pytest.mark.parametrize(
    ("precision", "left", "right", "passes"),
    [
        (None, "f32", "f32", 1),
        ("high,high", "f32", "f32", 3),
        ("highest,highest", "f32", "f32", 6),
        ("high,high", "f32", "bf16", 2),
        ("highest,highest", "f32", "bf16", 3),
        ("highest,highest", "bf16", "bf16", 1),
    ],
)
def test_exact_products_take_several_passes(
    precision: str | None, left: str, right: str, passes: int
) -> None:
    """libtpu's estimated cycles of such a product: 1, 2.9, 6.2, 2.1, 3.0 and 1 times the first."""
    asked = f", operand_precision={{{precision}}}" if precision else ""
    line = f"%c = f32[64,32]{{1,0}} convolution(%p0, %p1), dim_labels=bf_io->bf{asked}"
    operands = f"{left}[64,128]{{1,0}}", f"{right}[128,32]{{1,0}}"
    assert flops(line, *operands) == 2 * 64 * 32 * 128
    assert flops(line, *operands, of=product_work) == passes * 2 * 64 * 32 * 128


def test_a_batched_product_as_a_convolution_counts_no_padding() -> None:
    """12 independent products of 8 x 16 and 16 x 4: one place of the window meets each."""
    line = (
        "%c = f32[12,8,4]{2,1,0} convolution(%p0, %p1), "
        "window={size=12 stride=11 pad=0_0 lhs_dilate=12}, dim_labels=0bf_0io->0bf"
    )
    assert flops(line, "f32[12,8,16]{2,1,0}", "f32[12,16,4]{2,1,0}") == 12 * 2 * 8 * 16 * 4


def test_a_gradient_that_contracts_positions_with_a_window() -> None:
    line = "%c = f32[1,16,4]{2,1,0} convolution(%p0, %p1), window={size=6}, dim_labels=0fb_0io->0bf"
    assert flops(line, "f32[6,8,16]{2,1,0}", "f32[6,8,4]{2,1,0}") == 2 * 6 * 8 * 16 * 4


@pytest.mark.parametrize("seed", range(30))
def test_pairs_are_those_that_a_walk_finds(seed: int) -> None:
    values = itertools.product(
        (1, 3, 8), (1, 4, 9), (1, 2, 7), (0, 1, 6), (1, 3), (1, 2, 5), (1, 2)
    )
    positions, results, size, pad, stride, left, right = list(values)[seed * 71 % 972]
    last = (positions - 1) * left
    walk = 0
    for result, place in itertools.product(range(results), range(size)):
        at = result * stride + place * right - pad
        walk += 0 <= at <= last and at % left == 0
    assert _pairs(positions, results, size, pad, stride, left, right) == walk


def test_products_of_a_real_program() -> None:
    """4 layers of 2 products: forward, first one again, two gradients each; 512 x 4 rows a chip."""
    module = parse((PROGRAMS / "fsdp_scan.hlo").read_text(encoding="utf-8"))
    total = once = 0.0
    for name, times in module.times.items():
        computation = module.computations[name]
        for op in computation.ops:
            found = product_flops(module, computation, op)
            total, once = total + found * times, once + found
    product = 2 * 2048 * 1024 * 4096
    assert total == 4 * 7 * product
    assert once == 7 * product
