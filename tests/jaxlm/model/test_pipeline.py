# SPDX-License-Identifier: Apache-2.0
"""A pipeline is its layers in order, for every micro-batch once: values, gradients, what layers tell.

Legend: L layers  B batch  T positions  D width
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model import pipeline
from jaxlm.sharding.config import MeshConfig, Schedule
from jaxlm.sharding.mesh import make_mesh
from jaxlm.train.setup import on_mesh

B, T, D, L = 16, 3, 4, 8


def layer(x_BTD, w_D, shift_BT):
    """Does not commute with another, and is told apart by row and by layer."""
    x_BTD = jnp.tanh(x_BTD * w_D[None, None] + shift_BT[..., None])
    return x_BTD, jnp.sum(x_BTD * jnp.arange(1.0, D + 1)[None, None])


def stage(params, x_BTD, where):
    return jax.lax.scan(lambda x, w_D: layer(x, w_D, where["shift"]), x_BTD, params)


def in_order(params_LD, x_BTD, shift_BT):
    told = []
    for w_D in params_LD:
        x_BTD, y = layer(x_BTD, w_D, shift_BT)
        told.append(y)
    return x_BTD, jnp.stack(told)


def objective(run, params_LD, x_BTD, shift_BT):
    y_BTD, told_L = run(params_LD, x_BTD, shift_BT)
    return jnp.sum(y_BTD * jnp.cos(jnp.arange(y_BTD.size)).reshape(y_BTD.shape)) + jnp.sum(
        told_L * jnp.arange(1.0, L + 1)
    )


SCHEDULES = [(2, 8, 4), (4, 4, 2)]  # stages, micro-batches, repeats
MORE = [(2, 2, 1), (2, 2, 2), (2, 4, 2), (4, 4, 1), (4, 8, 2)]
SCHEDULES += [pytest.param(more, marks=pytest.mark.slow) for more in MORE]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_it_is_the_layers_in_order(schedule: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    params_LD = rng.normal(size=(L, D)).astype(np.float32)
    x_BTD, shift_BT = (rng.normal(size=s).astype(np.float32) for s in ((B, T, D), (B, T)))

    def staged(params_LD, x_BTD, shift_BT):
        where = {"shift": shift_BT, "nothing": None}
        return pipeline.run(stage, params_LD, x_BTD, where, Schedule(*schedule))

    grad = lambda run: jax.value_and_grad(lambda *a: objective(run, *a), (0, 1, 2))
    want = jax.jit(grad(in_order))(params_LD, x_BTD, shift_BT)
    with on_mesh(make_mesh(MeshConfig(data=-1, pipeline=schedule[0]))):
        found = jax.jit(grad(staged))(params_LD, x_BTD, shift_BT)
        y_BTD, told_L = jax.jit(staged)(params_LD, x_BTD, shift_BT)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    for a, b in zip((y_BTD, told_L), in_order(params_LD, x_BTD, shift_BT), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


def test_stages_meet_only_as_neighbours() -> None:
    """The loop moves one stage's stream to the next, and nothing else."""
    args = np.ones((L, D)), np.ones((B, T, D)), np.ones((B, T))

    def staged(params_LD, x_BTD, shift_BT):
        return pipeline.run(stage, params_LD, x_BTD, {"shift": shift_BT}, Schedule(4, 4, 1))

    mesh = make_mesh(MeshConfig(data=2, pipeline=4))
    split = (jax.P("pipeline"), jax.P(("data", "pipeline")), jax.P(("data", "pipeline")))
    placed = [
        jax.device_put(np.float32(a), jax.NamedSharding(mesh, s))
        for a, s in zip(args, split, strict=True)
    ]
    with on_mesh(mesh):
        text = jax.jit(staged).lower(*placed).compile().as_text()
    (body,) = [b for b in text.split("\n\n") if "collective-permute" in b]
    moved = re.findall(r"= (\S+) (all-gather|all-to-all|all-reduce|collective-permute)\(", body)
    assert moved == [("f32[1,2,3,4]{3,2,1,0}", "collective-permute")]


@pytest.mark.parametrize(
    ("schedule", "idle"), [((1, 1, 1), 0), ((4, 4, 1), 3 / 7), ((4, 16, 2), 3 / 35)]
)
def test_the_idle_share_is_that_of_the_schedule(schedule, idle: float) -> None:
    """Counted: of all (stage, tick) pairs, those without a work item."""
    S, M, R = schedule
    found = Schedule(*schedule)
    items = [t - s for t in range(found.ticks) for s in range(S)]
    idle_items = sum(not 0 <= item < R * M for item in items)
    assert found.idle_frac == pytest.approx(idle) == pytest.approx(idle_items / len(items))
