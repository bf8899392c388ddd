# SPDX-License-Identifier: Apache-2.0
"""Experts on every token that chose them, on one device or split over a mesh.

    route:   choose experts (nn/router.py)                 on the device that holds the token
    spread:  rows sorted by expert (nn/dispatch.py)
    send:    each row to the device of its expert (nn/exchange.py)
    experts: three products of groups of rows (pallas_kernels/grouped_matmul)
    back:    each row to the device of its token
    collect: the sum of every token's rows

A row gets its weight where the weight is: before the last product if rows stay, so that the weight's
gradient needs no result of an expert and remat computes none again, else when it is back.

Legend: B batch  T positions  R = B*T tokens  K experts of a token  A = R*K assignments
        Q rows that a device may get  D model width  E experts  G experts of one device
        F expert width
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.nn.dispatch import collect, make_plan, permuted, spread
from jaxlm.nn.exchange import make_route, send, send_back
from jaxlm.nn.kernels import mesh_tpu
from jaxlm.nn.mlp import ACTIVATIONS
from jaxlm.nn.router import RowSums, Score, choose, row_sums
from jaxlm.sharding.rules import num_parts, spec
from pallas_kernels.grouped_matmul.api import Impl, grouped_matmul
from pallas_kernels.grouped_matmul.api import choose as choose_product


class ExpertWeights(NamedTuple):
    """Matrices of all experts, f32."""

    gate_EDF: jax.Array | None  # gated activations only
    up_EDF: jax.Array
    down_EFD: jax.Array


PRODUCT = "expert_product"  # for remat: no policy for ordinary products knows these
# Logical axes of the matrices that read the stream, and of the one that writes it.
READ, WRITE = ("expert", "embed", "ffn"), ("expert", "ffn", "embed")


class Split(NamedTuple):
    """The mesh axes of more than one device that split what."""

    experts: tuple[str, ...]
    embed: tuple[str, ...]  # of the experts' matrices, which are gathered where they are used
    width: tuple[str, ...]  # of the experts
    seq: tuple[str, ...]


class Rules(NamedTuple):
    """How tokens are routed, and what an expert computes."""

    num_chosen: int
    score: Score
    is_normalized: bool
    scale: float
    activation: str
    impl: Impl


def mixture(
    x_BTD: jax.Array,
    logits_BTE: jax.Array,
    bias_E: jax.Array | None,
    counted_BT: jax.Array | None,
    weights: ExpertWeights,
    rules: Rules,
) -> tuple[jax.Array, RowSums]:
    """The weighted sum of every token's experts, (B, T, D) in x's dtype, and the router's sums.

    counted_BT: bool; the others are padding: no expert computes them, their result is zero
    """
    arrays = x_BTD, logits_BTE, bias_E, counted_BT, weights
    split = _split(x_BTD.shape)
    if split is None:
        return _local(*arrays, rules, Split((), (), (), ()))
    tokens, rows = spec(("batch", "seq")), spec(("batch",))
    weight_specs: list[Any] = [spec(axes) for axes in (READ, READ, WRITE)]
    mapped = jax.shard_map(
        partial(_local, rules=rules, split=split),
        in_specs=(tokens, tokens, jax.P(), tokens, ExpertWeights._make(weight_specs)),
        out_specs=(tokens, rows),
        check_vma=False,
    )
    return mapped(*arrays)


def _split(shape: tuple[int, ...]) -> Split | None:
    """Mesh axes of more than one device; None where nothing is split, or tokens do not divide."""
    used = lambda axes: tuple(a for a in jax.tree.leaves((*axes,)) if num_parts(a) > 1)
    experts, embed, width = (used([axes]) for axes in spec(READ))
    batch, seq = (used([axes]) for axes in spec(("batch", "seq")))
    divides = shape[0] % num_parts(*batch) == 0 and shape[1] % num_parts(*seq) == 0
    is_split = any((experts, embed, width, batch, seq))
    return Split(experts, embed, width, seq) if is_split and divides else None


def _local(
    x_BTD: jax.Array,
    logits_BTE: jax.Array,
    bias_E: jax.Array | None,
    counted_BT: jax.Array | None,
    weights: ExpertWeights,
    rules: Rules,
    split: Split,
) -> tuple[jax.Array, RowSums]:
    """What one device does with its own tokens and experts."""
    B, T, D = x_BTD.shape
    E, K = logits_BTE.shape[-1], rules.num_chosen
    choice = choose(logits_BTE, bias_E, K, rules.score, rules.is_normalized, rules.scale)
    sums = jax.tree.map(partial(_sum_over, split.seq), row_sums(logits_BTE, choice, counted_BT))
    expert_BTK = choice.expert_BTK
    if counted_BT is not None:
        expert_BTK = jnp.where(counted_BT[..., None], expert_BTK, E)
    plan = make_plan(expert_BTK.reshape(B * T, K), E)
    weight_A = permuted(choice.weight_BTK.reshape(-1), plan.order_A, plan.place_A)
    x_AD = spread(x_BTD.reshape(B * T, D), plan, K)
    if split.experts:
        (axis,) = split.experts
        route = make_route(plan.sizes_E, len(x_AD), axis)
        x_QD = permuted(send(x_AD, route, axis), route.order_Q, route.place_Q)
        y_QD = _experts(x_QD, None, weights, route.sizes_G, rules, split)
        y_AD = send_back(permuted(y_QD, route.place_Q, route.order_Q), route, axis)
        y_AD = _weighted(y_AD, weight_A)
    else:
        y_AD = _experts(x_AD, weight_A, weights, plan.sizes_E, rules, split)
    y_RD = collect(y_AD, plan, K)
    return _sum_over(split.width, y_RD).reshape(B, T, D), sums


def _sum_over(axes: tuple[str, ...], x: jax.Array) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def _weighted(x_AD: jax.Array, weight_A: jax.Array) -> jax.Array:
    return (weight_A[:, None] * x_AD.astype(jnp.float32)).astype(x_AD.dtype)


def _experts(
    x_AD: jax.Array,
    weight_A: jax.Array | None,
    weights: ExpertWeights,
    sizes_E: jax.Array,
    rules: Rules,
    split: Split,
) -> jax.Array:
    """Every row by the expert of its group, times its weight; zeros beyond the last group.

    Experts whose width is split give a part of the sum over it.
    """
    act = ACTIVATIONS[rules.activation]

    def product(x_AD: jax.Array, w_EDF: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        w_EDF = w_EDF.astype(x_AD.dtype)  # before it is gathered: half the bytes
        if split.embed:
            w_EDF = jax.lax.all_gather(w_EDF, split.embed, axis=axes.index("embed"), tiled=True)
        y_AF = grouped_matmul(x_AD, w_EDF, sizes_E, impl=rules.impl, chip=mesh_tpu())
        return checkpoint_name(y_AF, PRODUCT)

    hidden_AF, gate_EDF = product(x_AD, weights.up_EDF, READ), weights.gate_EDF
    gate_AF = hidden_AF if gate_EDF is None else product(x_AD, gate_EDF, READ)
    hidden_AF = act(gate_AF) if gate_EDF is None else act(gate_AF) * hidden_AF
    if weight_A is not None:
        hidden_AF = _weighted(hidden_AF, weight_A)
    return product(hidden_AF, weights.down_EFD, WRITE)


def chosen(impl: Impl, D: int, F: int, dtype: str) -> str:
    """What experts run by on the mesh that surrounds the call: "reference", "xla" or "pallas".

    Raises ValueError for a kernel that was asked for and cannot run.
    """
    *_, width_axes = spec(READ)
    F //= num_parts(*jax.tree.leaves((width_axes,)))
    how = choose_product(impl, mesh_tpu(), D, F, jnp.dtype(dtype).itemsize)
    return how if how in ("reference", "xla") else "pallas"
