# SPDX-License-Identifier: Apache-2.0
"""Every implementation of grouped matmul against float64 loops, with groups chosen to hurt.

The TPU kernels run in interpret mode: races are detected, memory that was never written is NaN.

Legend: R rows  E groups  D width of x  F width of y  M visits
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul import api, tpu
from pallas_kernels.grouped_matmul.schedule import Visits, shared, visits
from pallas_kernels.tuning.grouped_matmul import Blocks

# Of the largest value.  Sums of some 60 products round by 60^.5 * 2^-24 = 5e-7 in f32; in bf16
# only the result is rounded, by 2^-9 = 2e-3.
BOUNDS = {"float32": 1e-6, "bfloat16": 4e-3}

INTERPRET = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    sizes: tuple[int, ...]
    R: int = 64
    D: int = 40
    F: int = 72
    dtype: str = "float32"
    num_cores: int = 1

    @property
    def blocks(self) -> Blocks:
        return Blocks(16, 8, 128, 128, self.num_cores, 2**26)

    def arrays(self) -> tuple[jax.Array, ...]:
        rng = np.random.default_rng(0)
        shapes = (self.R, self.D), (len(self.sizes), self.D, self.F), (self.R, self.F)
        return tuple(jnp.asarray(rng.normal(size=shape), self.dtype) for shape in shapes)


CASES = {
    "borders_within_pieces": Case(sizes=(3, 0, 30, 31)),
    "one_takes_all": Case(sizes=(0, 64, 0)),
    "none_takes_any": Case(sizes=(0, 0)),
    "rows_beyond": Case(sizes=(0, 5, 11, 0), D=130, F=200),
    "ragged": Case(sizes=(1, 0, 30, 0, 38), R=69, D=130, F=200),
    "one_row": Case(sizes=(0, 1), R=1),
    "aligned": Case(sizes=(16, 32, 16), D=128, F=128),
    "two_cores": Case(sizes=(10, 30, 0, 12), num_cores=2),
    "two_cores_ragged": Case(sizes=(40, 1, 9), R=52, num_cores=2),
    "bf16": Case(sizes=(10, 0, 37), D=130, F=200, dtype="bfloat16"),
}


def in_float64(case: Case) -> dict[str, np.ndarray]:
    x_RD, w_EDF, dy_RF = (np.asarray(a, np.float64) for a in case.arrays())
    y_RF, dx_RD, dw_EDF = np.zeros_like(dy_RF), np.zeros_like(x_RD), np.zeros_like(w_EDF)
    start = 0
    for e, size in enumerate(case.sizes):
        rows = slice(start, start + size)
        y_RF[rows] = x_RD[rows] @ w_EDF[e]
        dx_RD[rows] = dy_RF[rows] @ w_EDF[e].T
        dw_EDF[e] = x_RD[rows].T @ dy_RF[rows]
        start += size
    return {"y": y_RF, "dx": dx_RD, "dw": dw_EDF}


def by_kernels(case: Case) -> dict[str, jax.Array]:
    x_RD, w_EDF, dy_RF = case.arrays()
    sizes_E = jnp.array(case.sizes, jnp.int32)
    shared = {"blocks": case.blocks, "interpret": INTERPRET}
    return {
        "y": tpu.product(x_RD, w_EDF, sizes_E, **shared),
        "dx": tpu.product(dy_RF, w_EDF, sizes_E, is_flipped=True, **shared),
        "dw": tpu.weights_gradient(x_RD, dy_RF, sizes_E, w_EDF.dtype, **shared),
    }


def by_api(case: Case, impl: api.Impl) -> dict[str, jax.Array]:
    x_RD, w_EDF, dy_RF = case.arrays()
    function = lambda x_RD, w_EDF: api.grouped_matmul(x_RD, w_EDF, jnp.array(case.sizes), impl=impl)
    y_RF, pull_back = jax.vjp(function, x_RD, w_EDF)
    dx_RD, dw_EDF = pull_back(dy_RF)
    return {"y": y_RF, "dx": dx_RD, "dw": dw_EDF}


SLOW = (
    "none_takes_any",
    "one_row",
    "aligned",
    "two_cores",
    "two_cores_ragged",
    "bf16",
    "rows_beyond",
    "borders_within_pieces",
    "one_takes_all",
)  # by the interpreter: some 5 s each


def runs(impl: str) -> list:
    slow = lambda name: [pytest.mark.slow] if impl == "pallas" and name in SLOW else []
    return [
        pytest.param(case, impl, id=f"{impl}-{name}", marks=slow(name))
        for name, case in CASES.items()
    ]


@pytest.mark.parametrize(("case", "impl"), [*runs("reference"), *runs("xla"), *runs("pallas")])
def test_values_and_gradients_are_those_of_loops(case: Case, impl: str):
    found = by_kernels(case) if impl == "pallas" else by_api(case, impl)
    for name, want in in_float64(case).items():
        error = np.max(np.abs(np.asarray(found[name], np.float64) - want))
        assert error <= BOUNDS[case.dtype] * max(1.0, np.max(np.abs(want))), (name, error)


def test_visits_are_a_walk_through_tiles_and_groups():
    plan = visits(jnp.array([3, 0, 6]), 9, 4, visit_empty=False)
    pairs = list(zip(plan.group_M.tolist(), plan.tile_M.tolist(), strict=True))
    assert pairs == [(0, 0), (2, 0), (2, 1), (2, 2), (2, 2), (2, 2)]
    rows = list(zip(plan.start_M.tolist(), plan.stop_M.tolist(), strict=True))
    assert rows == [(0, 3), (3, 9), (3, 9), (3, 9), (3, 3), (3, 3)]
    plan = visits(jnp.array([3, 0, 6]), 9, 4, visit_empty=True)
    assert plan.group_M.tolist() == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "sizes",
    [
        *((0, 0, 64), (1,) * 60 + (4,)),
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in [(64,), (63, 1), (50, *[2] * 7), (3, 61)]
        ),
    ],
)
def test_two_parts_share_tiles_and_work(sizes):
    """No tile belongs to both, none is left out, and they differ by the heaviest tile at most."""
    R, tile, piece = 64, 8, 4
    plan = visits(jnp.array(sizes), R, tile, visit_empty=False)
    parts = shared(plan, tile, piece, R // tile, 2)

    def walk(plan: Visits) -> list[tuple[int, ...]]:
        steps = zip(*(a.tolist() for a in plan), strict=True)
        return [step for step in steps if step[2] < step[3]]

    first, second = (walk(Visits(*(a[p] for a in parts))) for p in (0, 1))
    assert first + second == walk(plan)
    assert not {step[1] for step in first} & {step[1] for step in second}
    for p, steps in enumerate((first, second)):  # the idle rest stays where the part ended
        assert set(parts.tile_M[p].tolist()[len(steps) :]) <= {steps[-1][1]}

    def work(steps: list[tuple[int, ...]]) -> int:
        low = lambda t, start: max(start, t * tile) // piece * piece
        high = lambda t, stop: min(stop, t * tile + tile)
        return sum(
            piece * -((low(t, start) - high(t, stop)) // piece) for _, t, start, stop in steps
        )

    heaviest = max(work([s for s in walk(plan) if s[1] == t]) for t in range(R // tile))
    assert abs(work(first) - work(second)) <= heaviest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_RD": jnp.zeros((3, 5))}, r"x \(3, 5\) and w \(2, 4, 6\) must be"),
        ({"x_RD": jnp.zeros((3, 4), jnp.bfloat16)}, "x is bfloat16 and w float32; allowed: both"),
        ({"sizes_E": jnp.array([1])}, r"sizes \(1,\) must be \(2,\)"),
        ({"sizes_E": jnp.array([1.0, 2.0])}, "sizes are float32; allowed: integers"),
        ({"impl": "cuda"}, "unknown grouped matmul impl 'cuda'; allowed: auto"),
        ({"impl": "pallas"}, "'pallas' needs a TPU"),
        ({"chip": "v3"}, "unknown chip 'v3'; allowed: v5e"),
    ],
)
def test_bad_input_is_named(change: dict, message: str):
    arguments = {
        "x_RD": jnp.zeros((3, 4)),
        "w_EDF": jnp.zeros((2, 4, 6)),
        "sizes_E": jnp.array([1, 2]),
    } | change
    with pytest.raises(ValueError, match=message):
        api.grouped_matmul(**arguments)


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_sizes_may_be_of_any_integers(impl: api.Impl, dtype: str):
    x_RD, w_EDF = jnp.ones((300, 2)), jnp.arange(1.0, 4.0)[:, None, None] * jnp.eye(2)[None]
    y_RF = api.grouped_matmul(x_RD, w_EDF, jnp.array([100, 100, 100], dtype), impl=impl)
    assert y_RF[:, 0].tolist() == [1.0] * 100 + [2.0] * 100 + [3.0] * 100


@pytest.mark.parametrize("sizes", [(4, 4, 4), (7, 0, 0), (-1, 4, 2), (3, -2, 6)])
def test_sizes_that_cannot_be_are_refused_or_bounded(sizes: tuple[int, ...]):
    """Where they are known they are refused; where not, rows end groups and none is negative."""
    x_RD, w_EDF = jnp.ones((6, 2)), jnp.arange(1.0, 4.0)[:, None, None] * jnp.eye(2)[None]
    with pytest.raises(ValueError, match=r"sizes are \[.*\]; allowed: none below 0, 6 in all"):
        api.grouped_matmul(x_RD, w_EDF, jnp.array(sizes))
    rows = [e + 1.0 for e, size in enumerate(sizes) for _ in range(size)][:6]
    for impl in ("reference", "xla"):
        run = jax.jit(
            lambda sizes_E, impl=impl: api.grouped_matmul(x_RD, w_EDF, sizes_E, impl=impl)
        )
        assert run(jnp.array(sizes))[:, 0].tolist() == rows
