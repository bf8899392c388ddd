# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts in float64 NumPy: a loop over tokens, and over each one's experts.

Legend: T positions of one document  D model width  E experts
"""

from typing import Any, NamedTuple

import autograd.numpy as np
from autograd.tracer import getval

from jaxlm.model.config import ModelConfig


class Routed(NamedTuple):
    """Sums over the tokens of one layer and document."""

    choices_E: Any
    shares_E: Any  # scores, brought to a sum of one per token
    tokens: int
    z_squares: Any


def chosen(score_E: Any, bias_E: Any, num_chosen: int) -> list[int]:
    """The largest of score + bias, the earlier of two equal ones first."""
    rank = [float(getval(score_E)[e] + getval(bias_E)[e]) for e in range(len(score_E))]
    return sorted(range(len(rank)), key=lambda e: (-rank[e], e))[:num_chosen]


def mixture(x_TD: Any, p: dict[str, Any], c: ModelConfig, mlp: Any) -> tuple[Any, Routed]:
    """mlp(x_TD, parameters, c) is one expert."""
    names = [name for name in ("w_gate", "w_up", "w_down") if name in p]
    bias_E = p["bias"] if "bias" in p else np.zeros(c.num_experts)
    rows, z_squares = [], 0.0
    choices_E, shares_E = np.zeros(c.num_experts), np.zeros(c.num_experts)
    for x_D in x_TD:
        logits_E = x_D @ p["router"]
        peak = np.max(logits_E)
        normaliser = np.sum(np.exp(logits_E - peak))
        z_squares = z_squares + (peak + np.log(normaliser)) ** 2
        softmax_E, sigmoid_E = np.exp(logits_E - peak) / normaliser, 1 / (1 + np.exp(-logits_E))
        score_E = softmax_E if c.router_score == "softmax" else sigmoid_E
        shares_E = shares_E + score_E / np.sum(score_E)
        experts = chosen(score_E, bias_E, c.experts_per_token)
        total = sum(score_E[e] for e in experts) if c.router_normalized else 1.0
        y_D = np.zeros(len(x_D))
        for e in experts:
            choices_E[e] += 1
            expert = {name: p[name][e] for name in names}
            y_D = y_D + c.router_scale * score_E[e] / total * mlp(x_D[None], expert, c)[0]
        rows.append(y_D)
    y_TD = np.array(rows)
    if c.num_shared_experts:
        y_TD = y_TD + mlp(x_TD, p["shared"], c)
    return y_TD, Routed(choices_E, shares_E, len(rows), z_squares)


def router_losses(rows: list[list[list[Routed]]], c: ModelConfig) -> Any:
    """The weighted losses of all layers; rows[b][document][layer]."""
    total = 0.0
    for documents in rows:
        for layers in zip(*documents, strict=True):
            tokens = sum(routed.tokens for routed in layers)
            use_E = sum(r.choices_E for r in layers) / (c.experts_per_token * tokens)
            share_E = sum(r.shares_E for r in layers) / tokens
            balance = tokens * c.num_experts * np.sum(use_E * share_E)
            total = total + c.router_balance_loss * balance
            total = total + c.router_z_loss * sum(r.z_squares for r in layers)
    return total
