# SPDX-License-Identifier: Apache-2.0
"""Every optimizer against float64 NumPy, and scalars as run-time inputs.

Legend: L layers  V vocabulary  D model width  N heads  H head width  F MLP width; all differ.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.optim.build import eval_params, make_optimizer
from jaxlm.optim.config import GroupConfig, OptimConfig
from jaxlm.optim.hparams import hparams
from tests.reference import optimizers

V, D, L, N, H, F = 7, 5, 3, 2, 4, 11
# path: (axes, shape, one layer's shape as inputs x outputs)
TREE = {
    "table": (("vocab", "embed"), (V, D), (V, D)),
    "wq": (("layers", "embed", "heads", "head_dim"), (L, D, N, H), (D, N * H)),
    "wo": (("layers", "heads", "head_dim", "embed"), (L, N, H, D), (N * H, D)),
    "w_up": (("layers", "embed", "ffn"), (L, D, F), (D, F)),
    "w_down": (("layers", "ffn", "embed"), (L, F, D), (F, D)),
    "sinks": (("layers", "heads"), (L, N), (N,)),
    "scale": (("norm",), (D,), (D,)),
}
AXES = {path: axes for path, (axes, _, _) in TREE.items()}
VECTORS = {"sinks", "scale"}
NAMES = ["adamw", "muon", "lion", "adafactor", "schedule_free"]
UPDATES = 7
GROUPS = (
    GroupConfig(pattern="w_.*", lr_scale=0.5, weight_decay_scale=0.25),
    GroupConfig(pattern="table|scale", weight_decay_scale=3.0, lr_scale=2.0),
)


def config(name: str, **fields) -> OptimConfig:
    defaults = {
        "peak_lr": 0.05,
        "muon_lr": 0.1,
        "schedule": "constant" if name == "schedule_free" else "linear",
        "warmup_steps": 3,
        "weight_decay": 0.3,
        "b1": 0.8,
        "eps": 1e-3,
        "clip_norm": 4.0,
        "groups": GROUPS,
    }
    return OptimConfig(name=name, **(defaults | fields))


def draw(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: np.float32(scale * rng.normal(size=shape)) for k, (_, shape, _) in TREE.items()}


PARAMS = draw(0)
# norms of 1.6 to 50: some are clipped and some are not
GRADIENTS = [draw(1 + i, scale) for i, scale in enumerate([0.1, 1.0, 0.2, 3.0, 0.1, 0.5, 0.1])]


@cache
def updater(name: str):
    """One compiled (params, state, grads, step, scalars) -> (params, state), and its traces."""
    traces = []
    make = make_optimizer(config(name), AXES)

    @jax.jit
    def update(params, state, grads, step, h):
        traces.append(name)
        updates, state = make(h, step).update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    return make, update, traces


def run(name: str, h: dict) -> tuple[dict, dict]:
    """Parameters, and those to evaluate, after all updates."""
    make, update, _ = updater(name)
    params, state = PARAMS, make(h, 0).init(PARAMS)
    for step, grads in enumerate(GRADIENTS):
        params, state = update(params, state, grads, step, h)
    return params, eval_params(config(name), state, params)


def as_layers(tree: dict) -> dict[str, list[np.ndarray]]:
    """The reference's form: matrices (inputs, outputs) or vectors, in float64."""
    return {k: list(np.float64(x).reshape(-1, *TREE[k][2])) for k, x in tree.items()}


def reference(name: str, h: dict) -> tuple[dict, dict]:
    h = {k: float(v) for k, v in h.items()}
    group = {"w_up": 0, "w_down": 0, "table": 1, "scale": 1}
    scaled = lambda path, what: h[f"groups/{group[path]}/{what}"] if path in group else 1.0
    matrices = set(TREE) - VECTORS - {"table"}

    def share(t: int) -> float:
        left = (UPDATES - t) / (UPDATES - 3) if name != "schedule_free" else 1.0
        return t / 3 if t <= 3 else left

    def lr(path: str, t: int) -> float:
        peak = h["muon_lr"] if name == "muon" and path in matrices else h["peak_lr"]
        return peak * share(t) * scaled(path, "lr_scale")

    def decay(path: str) -> float:
        return 0.0 if path in VECTORS else h["weight_decay"] * scaled(path, "weight_decay_scale")

    params, gradients = as_layers(PARAMS), [as_layers(g) for g in GRADIENTS]
    if name == "schedule_free":
        return optimizers.schedule_free_adamw(params, gradients, share, lr, decay, h)
    rest = {"adamw": optimizers.adam, "muon": optimizers.adam}.get(name) or getattr(
        optimizers, name
    )
    directions = {k: optimizers.muon if name == "muon" and k in matrices else rest for k in TREE}
    params = optimizers.descend(params, gradients, directions, lr, decay, h)
    return params, params


@pytest.mark.parametrize("name", NAMES)
def test_parameters_after_seven_updates_equal_the_float64_reference(name):
    h = hparams(config(name), UPDATES)
    # f32 rounds to 6e-8; seven updates of about twenty operations each, and cancellation in the
    # second moment's bias correction.  Newton-Schulz grows roundings (tests of optim/muon.py).
    atol = 1e-4 if name == "muon" else 5e-6
    for actual, expected in zip(run(name, h), reference(name, h), strict=True):
        for path, layers in as_layers(actual).items():
            np.testing.assert_allclose(layers, expected[path], atol=atol, err_msg=path)


def test_schedule_free_evaluates_other_parameters_than_it_trains():
    params, averaged = run("schedule_free", hparams(config("schedule_free"), UPDATES))
    assert np.abs(params["wq"] - averaged["wq"]).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_shrinks_matrices_and_embeddings_only(name):
    make, update, _ = updater(name)
    h = hparams(config(name, peak_lr=0.1, muon_lr=0.1, weight_decay=0.5), UPDATES)
    h |= {key: np.float32(1) for key in h if key.startswith("groups/")}
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    params, _ = update(PARAMS, make(h, 0).init(PARAMS), zeros, 2, h)  # the peak follows the warmup
    for path, param in params.items():
        kept = 1.0 if path in VECTORS else 0.95
        np.testing.assert_allclose(param, kept * PARAMS[path], rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_no_scalar_recompiles_the_update(name):
    make, update, traces = updater(name)
    for h in (hparams(config(name), UPDATES), hparams(config(name, clip_norm=None), 99)):
        for scale in (1.0, 0.5):
            scaled = {k: np.float32(v * scale) for k, v in h.items()}
            update(PARAMS, make(scaled, 0).init(PARAMS), GRADIENTS[0], 2, scaled)
    assert traces == [name]


@pytest.mark.parametrize("name", NAMES)
def test_state_has_one_structure_and_is_f32_but_for_counters(name):
    def abstract(h):
        return jax.eval_shape(lambda p: make_optimizer(config(name), AXES)(h, 0).init(p), PARAMS)

    some = abstract(hparams(config(name), UPDATES))
    other = abstract(hparams(config(name, b1=0.5, clip_norm=None, weight_decay=0.0), 99))
    assert some == other
    for leaf in jax.tree.leaves(some):
        assert leaf.dtype == jnp.float32 or (leaf.dtype == jnp.int32 and leaf.shape == ())
    make, update, _ = updater(name)
    h = hparams(config(name), UPDATES)
    state = make(h, 0).init(PARAMS)
    after = jax.eval_shape(update, PARAMS, state, GRADIENTS[0], 0, h)[1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), some
    )


@pytest.mark.parametrize(
    "name",
    [n if n == "muon" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
def test_three_settings_in_one_program_equal_three_runs(name):
    settings = [
        hparams(config(name, **fields), UPDATES)
        for fields in (
            {},
            {"peak_lr": 0.01, "muon_lr": 0.3, "b2": 0.5, "warmup_steps": 0},
            {"weight_decay": 0.0, "clip_norm": None, "eps": 1e-2, "muon_momentum": 0.5},
        )
    ]
    make, update, _ = updater(name)

    def whole_run(h):
        params, state = PARAMS, make(h, 0).init(PARAMS)
        for step, grads in enumerate(GRADIENTS[:3]):
            params, state = update(params, state, grads, step, h)
        return params

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *settings)
    together = jax.jit(jax.vmap(whole_run))(stacked)
    for i, h in enumerate(settings):
        # not bitwise: XLA orders the sums of a batched product in its own way
        jax.tree.map(
            partial(np.testing.assert_allclose, atol=2e-5 if name == "muon" else 1e-6),
            jax.tree.map(lambda x, i=i: x[i], together),
            whole_run(h),
        )


def test_schedule_free_averages_with_the_b1_of_the_update_not_of_the_start():
    optim = config("schedule_free")
    make, update, _ = updater("schedule_free")
    first, h = hparams(config("schedule_free", b1=0.3), UPDATES), hparams(optim, UPDATES)
    expected = update(PARAMS, make(h, 0).init(PARAMS), GRADIENTS[0], 0, h)
    actual = update(PARAMS, make(first, 0).init(PARAMS), GRADIENTS[0], 0, h)
    jax.tree.map(
        np.testing.assert_array_equal,
        eval_params(optim, actual[1], actual[0]),
        eval_params(optim, expected[1], expected[0]),
    )


def test_mistakes_are_found_before_anything_is_traced():
    with pytest.raises(ConfigError, match="'w_dwn' must match"):
        make_optimizer(config("adamw", groups=(GroupConfig(pattern="w_dwn"),)), AXES)
    with pytest.raises(ValueError, match="no optimizer label"):
        make_optimizer(config("adamw", groups=()), {"w": ("heads", "ffn")})
