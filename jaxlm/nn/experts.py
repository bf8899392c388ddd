# SPDX-License-Identifier: Apache-2.0
"""Experts on every token that chose them, on one device or split over a mesh.

    route:   choose experts (nn/router.py)                 on the device that holds the token
    spread:  rows sorted by expert (nn/dispatch.py)
    experts: three products of groups of rows (pallas_kernels/grouped_matmul)
    collect: the weighted sum of every token's rows

Legend: B batch  T positions  R = B*T tokens  K experts of a token  A = R*K assignments
        D model width  E experts  F expert width
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.nn.dispatch import collect, make_plan, spread
from jaxlm.nn.kernels import mesh_tpu
from jaxlm.nn.mlp import ACTIVATIONS
from jaxlm.nn.router import RowSums, Score, choose, row_sums
from pallas_kernels.grouped_matmul.api import Impl, grouped_matmul
from pallas_kernels.grouped_matmul.api import choose as choose_product


class ExpertWeights(NamedTuple):
    """Matrices of all experts, f32."""

    gate_EDF: jax.Array | None  # gated activations only
    up_EDF: jax.Array
    down_EFD: jax.Array


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
    return _local(x_BTD, logits_BTE, bias_E, counted_BT, weights, rules)


def _local(
    x_BTD: jax.Array,
    logits_BTE: jax.Array,
    bias_E: jax.Array | None,
    counted_BT: jax.Array | None,
    weights: ExpertWeights,
    rules: Rules,
) -> tuple[jax.Array, RowSums]:
    B, T, D = x_BTD.shape
    E, K = logits_BTE.shape[-1], rules.num_chosen
    choice = choose(logits_BTE, bias_E, K, rules.score, rules.is_normalized, rules.scale)
    sums = row_sums(logits_BTE, choice, counted_BT)
    expert_BTK = choice.expert_BTK
    if counted_BT is not None:
        expert_BTK = jnp.where(counted_BT[..., None], expert_BTK, E)
    plan = make_plan(expert_BTK.reshape(B * T, K), E)
    x_AD = spread(x_BTD.reshape(B * T, D), plan, K)
    y_AD = _experts(x_AD, weights, plan.sizes_E, rules)
    y_RD = collect(y_AD, choice.weight_BTK.reshape(B * T, K), plan)
    return y_RD.reshape(B, T, D), sums


def _experts(
    x_AD: jax.Array, weights: ExpertWeights, sizes_E: jax.Array, rules: Rules
) -> jax.Array:
    """Every row by the expert of its group; zeros beyond the last group."""
    product = partial(grouped_matmul, sizes_E=sizes_E, impl=rules.impl, chip=mesh_tpu())
    act, cast = ACTIVATIONS[rules.activation], partial(jnp.asarray, dtype=x_AD.dtype)
    hidden_AF = product(x_AD, cast(weights.up_EDF))
    gate_EDF = weights.gate_EDF
    gated = lambda: act(product(x_AD, cast(gate_EDF))) * hidden_AF
    return product(act(hidden_AF) if gate_EDF is None else gated(), cast(weights.down_EFD))


def chosen(impl: Impl) -> str:
    """What experts run by on the mesh that surrounds the call: "reference", "xla" or "pallas".

    Raises ValueError for a kernel that was asked for and cannot run.
    """
    how = choose_product(impl, mesh_tpu())
    return how if how in ("reference", "xla") else "pallas"
