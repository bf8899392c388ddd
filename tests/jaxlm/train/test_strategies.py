# SPDX-License-Identifier: Apache-2.0
"""Every parallelism is the same training: five updates on a mesh of 8 equal those on one device."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxlm.config import resolve
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.train.setup import build_trainer, on_mesh
from tests.jaxlm.train.conftest import CONFIG

# eps is of the size of the gradients: with a small one Adam divides rounding by rounding
OPTIM = dataclasses.replace(CONFIG.optim, eps=1e-2)
MODEL = dataclasses.replace(CONFIG.model, num_layers=4, num_kv_heads=None)
MODELS = {
    "plain": MODEL,
    "window": dataclasses.replace(MODEL, layer_pattern=("local", "full"), window=9),
    "experts": dataclasses.replace(
        MODEL,
        num_experts=4,
        experts_per_token=2,
        expert_ffn_dim=16,
        router_balance_loss=1e-2,
        router_z_loss=1e-3,
    ),
    "all": dataclasses.replace(
        MODEL,
        layer_pattern=("local", "full"),
        window=9,
        num_kv_heads=2,
        qk_norm=True,
        attention_softcap=5.0,
        attention_sinks=True,
        logit_softcap=8.0,
        tied_embeddings=False,
    ),
}
STEPS = 5


def trained(batches, model="plain", remat="none", micro=1, optim="adamw", mesh=None, offload=False):
    """(losses of 5 updates, final parameters, final optimizer state) as numpy arrays."""
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(MODELS[model], remat=remat),
        optim=dataclasses.replace(OPTIM, name=optim, muon_lr=3e-3),
        train=dataclasses.replace(CONFIG.train, num_micro_batches=micro, offload_optimizer=offload),
        mesh=mesh or MeshConfig(),
    )
    devices = jax.devices() if mesh else jax.devices()[:1]
    resolve(config, len(devices))
    trainer = build_trainer(config, np.ones(320, np.int32), make_mesh(config.mesh, devices))
    losses = []
    with on_mesh(trainer.mesh, trainer.rules):
        state = trainer.init(jax.random.key(0))
        for batch in batches:
            state, metrics = trainer.step(state, batch)
            losses.append(metrics["train/loss_nats"])
    return jax.device_get((np.array(losses), state.params, state.opt_state))


@pytest.fixture(scope="module")
def one_device(random_batch):
    """What a single device makes of (model, optim), computed once."""
    batches = [random_batch(i) for i in range(STEPS)]
    return functools.cache(lambda model, optim: trained(batches, model, optim=optim))


def assert_same_training(got, want, bound: float) -> None:
    """Losses, parameters and moments (the gradients' moving averages), each leaf by its norm."""
    named = jax.tree_util.tree_leaves_with_path(got)
    for (path, a), b in zip(named, jax.tree.leaves(want), strict=True):
        error = np.linalg.norm(np.float64(a) - b) / max(np.linalg.norm(np.float64(b)), 1e-12)
        assert error <= bound, f"{jax.tree_util.keystr(path)}: {error:.1e}"


def mesh(**sizes) -> MeshConfig:
    return MeshConfig(**{"data": 1} | sizes)


FEW = {  # mesh, and what differs from `trained`'s defaults
    "tensor x fsdp, sequence split": (mesh(fsdp=2, data=2, model=2), {"remat": "full"}),
    "ring x fsdp x tensor, all masks": (mesh(fsdp=2, context=2, model=2), {"model": "all"}),
    "pipeline x repeats x fsdp x accumulation": (
        mesh(fsdp=2, data=2, pipeline=2, pipeline_repeats=2),
        {"micro": 2},
    ),
    "slices x fsdp, Muon, offloaded": (
        mesh(slice=2, fsdp=4),
        {"optim": "muon", "offload": True, "remat": "offload"},
    ),
}
MANY = {
    "data": (mesh(data=8), {}),
    "fsdp": (mesh(fsdp=8), {"remat": "dots"}),
    "data x fsdp": (mesh(data=2, fsdp=4), {"optim": "adafactor"}),
    "tensor, sequence whole": (mesh(data=2, model=4, sequence_parallel=False), {}),
    "tensor x fsdp, all masks": (mesh(fsdp=4, model=2), {"model": "all", "optim": "muon"}),
    "expert axis as fsdp": (mesh(fsdp=2, expert=2, model=2), {"micro": 2}),
    "ring": (mesh(data=2, context=4), {"model": "window", "remat": "full"}),
    "ring x accumulation": (mesh(data=2, context=4), {"model": "all", "micro": 4}),
    "all-gather x fsdp, all masks": (
        mesh(fsdp=2, context=4, context_attention="all_gather"),
        {"model": "all", "remat": "full"},
    ),
    "Ulysses x data, window": (
        mesh(data=2, context=4, context_attention="ulysses"),
        {"model": "window"},
    ),
    "Ulysses x tensor x fsdp": (
        mesh(fsdp=2, context=2, model=2, context_attention="ulysses"),
        {"remat": "dots"},
    ),
    "pipeline": (mesh(data=2, pipeline=4), {"remat": "full"}),
    "pipeline x many micro-batches x tensor": (
        mesh(pipeline=2, pipeline_micro_batches=4, data=2, model=2),
        {"model": "all"},
    ),
    "pipeline x fsdp x ring": (mesh(pipeline=2, fsdp=2, context=2), {"model": "window"}),
    "pipeline x experts": (mesh(pipeline=2, data=4), {"model": "experts"}),
    "pipeline x experts, split": (mesh(pipeline=2, fsdp=2, expert=2), {"model": "experts"}),
    "experts, split x ring x slices": (
        mesh(slice=2, expert=2, context=2),
        {"model": "experts", "optim": "muon"},
    ),
    "slices x tensor x fsdp": (mesh(slice=2, fsdp=2, model=2), {"model": "all"}),
    "slices x pipeline x repeats": (
        mesh(slice=2, fsdp=2, pipeline=2, pipeline_repeats=2),
        {"optim": "muon", "remat": "full"},
    ),
    "slices x ring": (mesh(slice=2, fsdp=2, context=2), {"model": "all", "micro": 2}),
}
SLOW = (
    *MANY,
    "slices x fsdp, Muon, offloaded",
    "ring x fsdp x tensor, all masks",
    "pipeline x repeats x fsdp x accumulation",
)  # half a minute of compiling each
CASES = [name for name in FEW if name not in SLOW]
CASES += [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]


@pytest.mark.parametrize("case", CASES)
def test_five_updates_equal_those_of_one_device(case, one_device, random_batch) -> None:
    sizes, changes = (FEW | MANY)[case]
    want = one_device(changes.get("model", "plain"), changes.get("optim", "adamw"))
    got = trained([random_batch(i) for i in range(STEPS)], **changes, mesh=sizes)
    assert_same_training(got, want, 1e-5)
