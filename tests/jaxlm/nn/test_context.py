# SPDX-License-Identifier: Apache-2.0
"""Attention over a split sequence is attention: values and gradients, every way and every mask."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn import kernels
from jaxlm.nn.context import from_zigzag, to_zigzag
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.mesh import make_mesh
from jaxlm.sharding.rules import rules_of, spec
from jaxlm.train.setup import on_mesh
from pallas_kernels.attention import reference

B, T, N, K, H = 2, 48, 8, 4, 4
MASKS = {
    "causal": {},
    "all": {"window": 19, "softcap": 2.0, "ids": True, "sinks": True},
    "window": {"window": 7},
    "wide window": {"window": 30},
    "softcap": {"softcap": 2.0},
    "packed": {"ids": True},
    "sinks": {"sinks": True},
}


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"q": (B, T, N, H), "k": (B, T, K, H), "v": (B, T, K, H), "out": (B, T, N, H)}
    arrays = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    ids = np.sort(rng.integers(0, 5, (B, T)), axis=1).astype(np.int32)  # segments of any length
    return arrays | {"ids": ids, "sinks": rng.normal(size=N).astype(np.float32)}


def whole(mask):
    x = inputs()
    ids = (x["ids"], x["ids"]) if mask.get("ids") else None
    options = {n: mask[n] for n in ("window", "softcap") if n in mask}

    def objective(q, k, v, sinks):
        sinks = sinks if mask.get("sinks") else None
        out = reference.attention(q, k, v, scale=H**-0.5, segment_ids=ids, sinks_N=sinks, **options)
        return jnp.sum(out * x["out"]), out

    return objective


def split(mask):
    x = inputs()
    options = {n: mask[n] for n in ("window", "softcap") if n in mask}

    def objective(q, k, v, sinks):
        q, k, v, ids = to_zigzag(q, k, v, jnp.asarray(x["ids"]))
        out = kernels.attention(
            q,
            k,
            v,
            segment_ids_BT=ids if mask.get("ids") else None,
            sinks_N=sinks if mask.get("sinks") else None,
            **options,
        )
        out = from_zigzag(out)
        return jnp.sum(out * x["out"]), out

    return objective


def run(objective):
    x = inputs()
    grad = jax.value_and_grad(objective, (0, 1, 2, 3), has_aux=True)
    return jax.jit(grad)(x["q"], x["k"], x["v"], x["sinks"])


CASES = [("ring", {"context": 4}, "all"), ("ring", {"context": 3}, "causal")]
CASES += [("all_gather", {"context": 4}, "all"), ("ulysses", {"context": 4}, "all")]
CASES += [("ring", {"context": 2, "fsdp": 2, "model": 2}, "all")]
MORE = [("ring", {"context": 4}, mask) for mask in MASKS if mask != "all"]
MORE += [("all_gather", {"context": 4}, mask) for mask in ("window", "packed")]
MORE += [("ulysses", {"context": 2, "model": 2}, "packed"), ("ring", {"context": 2}, "packed")]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in MORE]


@pytest.mark.parametrize(("way", "sizes", "name"), CASES, ids=str)
def test_it_is_attention(way: str, sizes: dict[str, int], name: str) -> None:
    """Bound: sums of f32 in another order."""
    config = MeshConfig(data=1, context_attention=way, **sizes)
    mesh = make_mesh(config, jax.devices()[: int(np.prod(list(sizes.values())))])
    with on_mesh(mesh, rules_of(config)):
        found = run(split(MASKS[name]))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(run(whole(MASKS[name]))), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-6)


TRAFFIC = {
    "ring": {"collective-permute"},
    "all_gather": {"all-gather", "reduce-scatter", "collective-permute"},  # the last for zig-zag
    "ulysses": {"all-to-all"},
}


@pytest.mark.parametrize("way", TRAFFIC)
def test_each_way_moves_what_it_says(way: str) -> None:
    """Forward and backward, of inputs that lie as a model's do; sums of the loss apart."""
    config = MeshConfig(data=1, context=4, context_attention=way)
    mesh = make_mesh(config, jax.devices()[:4])
    x = inputs()
    with on_mesh(mesh, rules_of(config)):
        rows = jax.NamedSharding(mesh, spec(("rows", "seq")))
        placed = [jax.device_put(x[name], rows) for name in ("q", "k", "v")]
        grad = jax.grad(lambda *qkv: split({})(*qkv, None)[0], (0, 1, 2))
        program = jax.jit(grad, out_shardings=rows).lower(*placed).compile().as_text()
    kinds = "all-gather|all-to-all|collective-permute|reduce-scatter"
    assert set(re.findall(rf" ({kinds})\(", program)) == TRAFFIC[way]
