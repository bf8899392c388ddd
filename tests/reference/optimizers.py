# SPDX-License-Identifier: Apache-2.0
"""Optimizers in float64 NumPy, one matrix of one layer at a time, from the papers' formulas.

A parameter is a list of layers; each layer is a 2-D array (inputs, outputs) or a 1-D vector.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Layers = list[np.ndarray]
Params = dict[str, Layers]
Scalars = dict[str, float]
Direction = Callable[
    [np.ndarray, dict[str, Any], int, Scalars], np.ndarray
]  # g, memory, t, scalars


def adam(g: np.ndarray, memory: dict[str, Any], t: int, h: Scalars) -> np.ndarray:
    memory["m"] = h["b1"] * memory.get("m", 0.0) + (1 - h["b1"]) * g
    memory["v"] = h["b2"] * memory.get("v", 0.0) + (1 - h["b2"]) * g**2
    m, v = memory["m"] / (1 - h["b1"] ** t), memory["v"] / (1 - h["b2"] ** t)
    return m / (np.sqrt(v) + h["eps"])


def lion(g: np.ndarray, memory: dict[str, Any], t: int, h: Scalars) -> np.ndarray:
    m = memory.get("m", 0.0)
    memory["m"] = h["b2"] * m + (1 - h["b2"]) * g
    return np.sign(h["b1"] * m + (1 - h["b1"]) * g)


def adafactor(g: np.ndarray, memory: dict[str, Any], t: int, h: Scalars) -> np.ndarray:
    b2 = min(h["b2"], 1 - t**-0.8)
    squares = g**2 + h["eps"] ** 2
    if g.ndim == 1:
        memory["v"] = estimate = b2 * memory.get("v", 0.0) + (1 - b2) * squares
    else:
        memory["r"] = b2 * memory.get("r", 0.0) + (1 - b2) * squares.mean(1)
        memory["c"] = b2 * memory.get("c", 0.0) + (1 - b2) * squares.mean(0)
        estimate = np.outer(memory["r"], memory["c"]) / memory["r"].mean()
    u = g / np.sqrt(estimate)
    return u / max(1.0, float(np.sqrt(np.mean(u**2))))


def newton_schulz(x: np.ndarray, steps: int) -> np.ndarray:
    """By the singular values: the iteration leaves the singular vectors as they are."""
    left, s, right = np.linalg.svd(x, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return left @ np.diag(s) @ right


def muon(g: np.ndarray, memory: dict[str, Any], t: int, h: Scalars) -> np.ndarray:
    beta = h["muon_momentum"]
    memory["m"] = beta * memory.get("m", 0.0) + (1 - beta) * g
    nesterov = beta * memory["m"] + (1 - beta) * g
    return newton_schulz(nesterov, 5) * max(1.0, g.shape[1] / g.shape[0]) ** 0.5


def clipped(grads: Params, max_norm: float) -> Params:
    norm = np.sqrt(sum(float(np.sum(g**2)) for layers in grads.values() for g in layers))
    return {k: [g * min(1.0, max_norm / norm) for g in v] for k, v in grads.items()}


def descend(
    params: Params,
    gradients: list[Params],
    directions: dict[str, Direction],
    lr: Callable[[str, int], float],
    decay: Callable[[str], float],
    h: Scalars,
) -> Params:
    """p <- p - lr (u + decay p), for every gradient in turn."""
    params = {k: [p.copy() for p in v] for k, v in params.items()}
    memory: dict[Any, dict[str, Any]] = {
        (k, i): {} for k, v in params.items() for i in range(len(v))
    }
    for t, grads in enumerate(gradients, start=1):
        for k, layers in clipped(grads, h["clip_norm"]).items():
            for i, g in enumerate(layers):
                u = directions[k](g, memory[k, i], t, h)
                params[k][i] = params[k][i] - lr(k, t) * (u + decay(k) * params[k][i])
    return params


def schedule_free_adamw(
    params: Params,
    gradients: list[Params],
    share: Callable[[int], float],  # of the peak, at update t
    lr: Callable[[str, int], float],
    decay: Callable[[str], float],
    h: Scalars,
) -> tuple[Params, Params]:
    """(y, x): where the gradient is taken, and the average.  arXiv:2405.15682, Algorithm 1."""
    x = {k: [p.copy() for p in v] for k, v in params.items()}
    z, y = x, x
    v = {k: [np.zeros_like(p) for p in layers] for k, layers in x.items()}
    total = 0.0
    for t, grads in enumerate(gradients, start=1):
        weight = (h["peak_lr"] * max(share(s) for s in range(1, t + 1))) ** 2
        total += weight
        c = weight / total
        new: tuple[Params, Params, Params] = ({}, {}, {})
        for k, layers in clipped(grads, h["clip_norm"]).items():
            new[0][k], new[1][k], new[2][k] = [], [], []
            for i, g in enumerate(layers):
                v[k][i] = h["b2"] * v[k][i] + (1 - h["b2"]) * g**2
                u = g / (np.sqrt(v[k][i] / (1 - h["b2"] ** t)) + h["eps"])
                z_new = z[k][i] - lr(k, t) * (u + decay(k) * y[k][i])
                x_new = (1 - c) * x[k][i] + c * z_new
                new[0][k].append(x_new)
                new[1][k].append(z_new)
                new[2][k].append((1 - h["b1"]) * z_new + h["b1"] * x_new)
        x, z, y = new
    return y, x
