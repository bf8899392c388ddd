# SPDX-License-Identifier: Apache-2.0
"""Every implementation of linear cross-entropy against float64 numpy, on cases chosen to hurt.

The TPU kernel runs in interpret mode: races are detected, memory that was never written is NaN.

Legend: R rows  D width  V vocabulary
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from pallas_kernels.cross_entropy import api, tpu, xla
from pallas_kernels.cross_entropy.rows import CrossEntropy, Task, sums
from pallas_kernels.tuning.cross_entropy import Config

# f32 rounds by 2^-24 = 6e-8; sums over D and V, an exponential and a product with it are some
# 40 dependent roundings.  bf16 rounds the logit gradients (2^-9 = 2e-3) and dx once more.
BOUNDS = {"float32": 3e-6, "bfloat16": 6e-3}

INTERPRET = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    R: int = 130
    V: int = 384
    D: int = 24
    dtype: str = "float32"
    table_dtype: str | None = None  # None: as x
    softcap: float | None = None
    z_loss: float = 0.0
    num_valid: int | None = None
    spread: float = 1.0  # of the logits
    kept_frac: float = 0.5
    num_cores: int = 1
    rows: int = 128

    @property
    def config(self) -> Config:
        return Config(self.rows, 128, self.kept_frac, 64, self.num_cores, 2**26)

    @property
    def task(self) -> Task:
        return Task(self.softcap, self.z_loss, self.num_valid, None)

    def arrays(self) -> tuple[jax.Array, ...]:
        """A third of the rows has weight 0, half of those a target outside of the vocabulary."""
        rng = np.random.default_rng(0)
        x_RD = rng.normal(size=(self.R, self.D)) * self.spread
        table_VD = rng.normal(size=(self.V, self.D)) / np.sqrt(self.D)
        targets_R = rng.integers(0, self.num_valid or self.V, self.R)
        weights_R = rng.uniform(0.5, 1.5, self.R)
        weights_R[1::3] = 0.0
        targets_R[1::6] = -1
        targets_R[4::6] = self.V + 7
        return (
            jnp.asarray(x_RD, self.dtype),
            jnp.asarray(table_VD, self.table_dtype or self.dtype),
            jnp.asarray(targets_R, jnp.int32),
            jnp.asarray(weights_R, jnp.float32),
        )


CASES = {
    "plain": Case(),
    "one_row": Case(R=1, V=129),
    "ragged_everywhere": Case(R=257, V=300, D=40, kept_frac=0.4),
    "one_tile": Case(R=8, V=5, D=8),
    "all_kept": Case(kept_frac=1.0, z_loss=0.1),
    "bf16": Case(dtype="bfloat16", spread=3.0, z_loss=0.01),
    "bf16_f32_table": Case(dtype="bfloat16", table_dtype="float32"),
    "everything": Case(R=260, V=512, softcap=5.0, z_loss=0.1, num_valid=411, num_cores=2),
    "large_logits": Case(spread=40.0),
    "cap_and_padding": Case(R=129, V=257, softcap=2.0, num_valid=130, spread=5.0),
}
QUICK = ("everything",)  # by the interpreter: some 5 s each


def runs(impl: str) -> list:
    slow = lambda name: [pytest.mark.slow] if impl == "pallas" and name not in QUICK else []
    return [
        pytest.param(case, impl, id=f"{impl}-{name}", marks=slow(name))
        for name, case in CASES.items()
    ]


def in_float64(case: Case) -> dict[str, np.ndarray]:
    """The definition, written out."""
    x_RD, table_VD, targets_R, weights_R = (np.asarray(a) for a in case.arrays())
    x_RD, table_VD = x_RD.astype(np.float64), np.asarray(table_VD.astype(x_RD.dtype), np.float64)
    weights_R, R = weights_R.astype(np.float64), np.arange(case.R)
    z_RV, slope_RV = x_RD @ table_VD.T, 1.0
    if case.softcap is not None:
        bent_RV = np.tanh(z_RV / case.softcap)
        z_RV, slope_RV = case.softcap * bent_RV, 1 - bent_RV**2
    if case.num_valid is not None:
        z_RV[:, case.num_valid :] = -np.inf
    peak_R = z_RV.max(axis=1)
    lse_R = peak_R + np.log(np.exp(z_RV - peak_R[:, None]).sum(axis=1))
    inside_R = (targets_R >= 0) & (targets_R < case.V)
    safe_R = np.where(inside_R, targets_R, 0)
    onehot_RV = np.zeros_like(z_RV)
    onehot_RV[R, safe_R] = inside_R
    dz_RV = np.exp(z_RV - lse_R[:, None]) * (1 + 2 * case.z_loss * lse_R[:, None]) - onehot_RV
    dz_RV *= weights_R[:, None] * slope_RV
    nats_R, z_squares_R = lse_R - z_RV[R, safe_R], lse_R**2
    return {
        "loss": np.sum(weights_R * (nats_R + case.z_loss * z_squares_R)),
        "nats": np.sum(weights_R * nats_R),
        "z_squares": np.sum(weights_R * z_squares_R),
        "correct": np.sum(weights_R * (z_RV.argmax(axis=1) == targets_R)),
        "count": np.sum(weights_R),
        "lse_R": lse_R,
        "dx": dz_RV @ table_VD,
        "dtable": dz_RV.T @ x_RD,
    }


def by_kernel(case: Case) -> dict[str, jax.Array]:
    x_RD, table_VD, targets_R, weights_R = case.arrays()
    arrays = x_RD, table_VD, targets_R
    found, dx, dtable = tpu.statistics_and_gradients(
        *arrays, weights_R, case.task, case.config, INTERPRET
    )
    totals = sums(found, targets_R, weights_R, case.z_loss)
    return {**totals._asdict(), "dx": dx, "dtable": dtable}


def by_api(case: Case, impl: api.Impl) -> dict[str, jax.Array]:
    """Through the derivative of twice the loss."""
    x_RD, table_VD, targets_R, weights_R = case.arrays()
    options = {"softcap": case.softcap, "z_loss": case.z_loss, "num_valid": case.num_valid}

    def twice(x_RD: jax.Array, table_VD: jax.Array) -> tuple[jax.Array, CrossEntropy]:
        found = api.linear_cross_entropy(x_RD, table_VD, targets_R, weights_R, **options, impl=impl)
        return 2.0 * found.loss, found

    (dx, dtable), found = jax.jit(jax.grad(twice, (0, 1), has_aux=True))(x_RD, table_VD)
    assert dx.dtype == x_RD.dtype and dtable.dtype == table_VD.dtype
    return {**found._asdict(), "dx": dx / 2, "dtable": dtable / 2}


def assert_close(found: dict[str, jax.Array], case: Case, bound: float) -> None:
    want = in_float64(case)
    assert found.keys() == want.keys()
    for name, a in found.items():
        error = np.max(np.abs(np.asarray(a, np.float64) - want[name]), initial=0.0)
        assert error <= bound * max(1.0, np.max(np.abs(want[name]))), (name, error)


@pytest.mark.parametrize(("case", "impl"), [*runs("reference"), *runs("xla"), *runs("pallas")])
def test_values_and_gradients_are_those_of_the_definition(case: Case, impl: str, monkeypatch):
    monkeypatch.setattr(xla, "CHUNK_LOGITS", 100 * case.V)  # several chunks, the last ragged
    nothing = lambda shape, dtype: jnp.full(shape, jnp.nan, dtype)
    monkeypatch.setattr(jax.lax, "empty", nothing)  # where the sums of dtable begin
    found = by_kernel(case) if impl == "pallas" else by_api(case, impl)
    assert_close(found, case, BOUNDS[case.dtype] * max(1.0, case.spread))  # of logits, absolute


def test_statistics_alone_are_those_that_come_with_gradients():
    """The forward pass of evaluation, by the kernel."""
    case = CASES["everything"]
    x_RD, table_VD, targets_R, weights_R = case.arrays()
    found = tpu.statistics(x_RD, table_VD, targets_R, case.task, case.config, INTERPRET)
    totals = sums(found, targets_R, weights_R, case.z_loss)
    want = in_float64(case)
    for name, a in totals._asdict().items():
        np.testing.assert_allclose(a, want[name], rtol=BOUNDS["float32"], err_msg=name)


@pytest.mark.parametrize("impl", ["reference", "xla", "pallas"])
def test_of_equal_logits_the_first_is_the_best(impl: str):
    """Ties within a tile, between tiles, and with the target before and after."""
    x_RD = jnp.ones((3, 8))
    table_VD = jnp.zeros((300, 8)).at[jnp.array([5, 9, 200])].set(1.0)
    targets_R, weights_R = jnp.array([5, 9, 200]), jnp.array([1.0, 2.0, 4.0])
    task, config = Task(None, 0.0, None, None), Case().config
    if impl == "pallas":
        found = tpu.statistics(x_RD, table_VD, targets_R, task, config, INTERPRET)
        correct = sums(found, targets_R, weights_R, 0.0).correct
    else:
        correct = api.linear_cross_entropy(x_RD, table_VD, targets_R, weights_R, impl=impl).correct
    assert correct == 1.0


def test_slices_of_the_vocabulary_on_a_mesh_give_the_whole():
    """Two devices; the second slice holds some of the valid tokens, or none at all."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, split = PartitionSpec(), PartitionSpec("model")
    for num_valid in (300, 256, 20):
        case = Case(R=130, V=512, softcap=4.0, z_loss=0.1, num_valid=num_valid)
        task = case.task._replace(axis_name="model")
        sliced = jax.shard_map(
            partial(api.forward_and_gradients, task=task, how="xla"),
            mesh=mesh,
            in_specs=(whole, split, whole, whole),
            out_specs=(whole, whole, split),
            check_vma=False,
        )
        found, dx, dtable = jax.jit(sliced)(*case.arrays())
        assert_close({**found._asdict(), "dx": dx, "dtable": dtable}, case, BOUNDS["float32"])


def test_a_slice_without_a_valid_token_counts_for_nothing():
    """The kernel's statistics of two slices, the second beyond the end, merge to the first's."""
    case = Case(V=256, num_cores=2)
    x_RD, table_VD, targets_R, _ = case.arrays()
    found = {}
    for num_valid in (128, 0):
        task = case.task._replace(num_valid=jnp.int32(num_valid))
        found[num_valid] = tpu.statistics(x_RD, table_VD, targets_R, task, case.config, INTERPRET)
    want_R = jax.nn.logsumexp(x_RD @ table_VD[:128].T, axis=1)
    np.testing.assert_allclose(found[128].lse_r, want_R, rtol=1e-5)
    assert np.all(np.asarray(found[0].lse_r) < -1e29)


def test_only_the_loss_has_a_derivative():
    x_RD, table_VD, targets_R, weights_R = Case().arrays()
    for impl in ("reference", "xla"):
        others = lambda x_RD, impl=impl: sum(
            jnp.sum(a)
            for a in api.linear_cross_entropy(
                x_RD, table_VD, targets_R, weights_R, z_loss=0.1, impl=impl
            )[1:]
        )
        assert not np.any(jax.grad(others)(x_RD))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_RD": jnp.zeros((3, 5))}, r"x \(3, 5\) and table \(8, 4\) must be"),
        ({"x_RD": jnp.zeros((3, 4), jnp.float16)}, "x is float16; allowed: bfloat16, float32"),
        ({"targets_R": jnp.zeros((2,), int)}, r"targets \(2,\) must be \(3,\)"),
        ({"targets_R": jnp.zeros((3,))}, "targets are float32; allowed: integers"),
        ({"softcap": 0.0}, "softcap is 0.0; allowed"),
        ({"softcap": float("inf")}, "softcap is inf; allowed"),
        ({"softcap": "3"}, "softcap is '3'; allowed"),
        ({"num_valid": 9}, "num_valid is 9; allowed: 1 to 8"),
        ({"num_valid": 2.5}, "num_valid is 2.5; allowed: 1 to 8"),
        ({"z_loss": jnp.ones(3)}, "z_loss is .*; allowed: a number"),
        ({"impl": "cuda"}, "unknown cross-entropy impl 'cuda'; allowed: auto"),
        ({"impl": "pallas"}, "'pallas' needs a TPU"),
        ({"chip": "v3"}, "unknown chip 'v3'; allowed: v5e"),
    ],
)
def test_bad_input_is_named(change: dict, message: str):
    arguments = {
        "x_RD": jnp.zeros((3, 4)),
        "table_VD": jnp.zeros((8, 4)),
        "targets_R": jnp.zeros((3,), int),
        "weights_R": jnp.ones((3,)),
    } | change
    with pytest.raises(ValueError, match=message):
        api.linear_cross_entropy(**arguments)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_rows_of_weight_0_count_for_nothing_whatever_they_hold(impl: str):
    x_RD, table_VD, targets_R, weights_R = Case().arrays()
    run = partial(api.linear_cross_entropy, z_loss=0.1, impl=impl)
    clean = run(x_RD, table_VD, targets_R, weights_R)
    for bad in (jnp.nan, jnp.inf):
        x_RD = jnp.where(weights_R[:, None] == 0, bad, x_RD)
        found = run(x_RD, table_VD, targets_R, weights_R)
        np.testing.assert_allclose(found[:5], clean[:5], rtol=1e-6)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_weights_and_z_loss_have_no_derivative(impl: str):
    x_RD, table_VD, targets_R, weights_R = Case().arrays()

    def loss(weights_R, z_loss):
        arrays = x_RD, table_VD, targets_R, weights_R
        return api.linear_cross_entropy(*arrays, z_loss=z_loss, impl=impl).loss

    for gradient in jax.grad(loss, (0, 1))(weights_R, 0.1):
        assert not np.any(gradient)
