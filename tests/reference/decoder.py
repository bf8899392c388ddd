# SPDX-License-Identifier: Apache-2.0
"""The whole decoder and its loss in float64 NumPy, written from the papers' equations.

Loops over documents, layers, heads and positions stand where jaxlm has masks, scans and einsums.
Every document of a packed row is run alone; a batch is the sum.  `autograd` gives the gradients.

Legend: B batch  T positions of one document  D model width  F MLP width  V vocabulary
        N query heads  H head width
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import autograd
import autograd.numpy as np

from jaxlm.model.config import ModelConfig
from tests.reference.attention import attention
from tests.reference.experts import Routed, mixture, router_losses

# --- rotary position embedding ---------------------------------------------------------------


def turns_of_pair(pair: int, c: ModelConfig) -> float:
    """Full turns that a pair of dimensions makes over the original context."""
    wavelength = 2 * np.pi * c.rope_theta ** (2 * pair / c.head_width)  # positions per turn
    return c.rope_original_len / wavelength


def frequency(pair: int, c: ModelConfig) -> float:
    """Radians by which a pair of dimensions turns from one position to the next."""
    H = c.head_width
    speed = c.rope_theta ** (-2 * pair / H)
    slow = speed / c.rope_factor  # position interpolation, arXiv:2306.15595
    turns = turns_of_pair(pair, c)
    match c.rope_scaling:
        case "none":
            return speed
        case "linear":
            return slow
        case "ntk":  # first pair as it was, last pair interpolated, geometric between
            return speed * c.rope_factor ** (-pair / (H / 2 - 1))
        case "llama3":  # interpolated under 1 turn, kept over 4, linear in the turns between
            if turns < 1:
                return slow
            if turns > 4:
                return speed
            return slow + (speed - slow) * (turns - 1) / 3
        case "yarn":  # kept up to the last pair of 32 turns, interpolated from the first of 1
            low = max([p for p in range(H) if turns_of_pair(p, c) >= 32], default=0)
            high = min([p for p in range(H) if turns_of_pair(p, c) <= 1], default=H - 1)
            if pair <= low:
                return speed
            if pair >= high:
                return slow
            return speed + (slow - speed) * (pair - low) / (high - low)
    raise ValueError(c.rope_scaling)


@functools.cache
def rotation(position: int, c: ModelConfig) -> Any:
    """The (H, H) matrix that turns a head at this position, arXiv:2104.09864 equation 15.

    The paper pairs dimensions 2i and 2i + 1, jaxlm i and i + H/2: a reordering.  YaRN makes queries
    and keys longer by 0.1 ln(factor) + 1, arXiv:2309.00071 equation 22.
    """
    half = c.head_width // 2
    matrix_HH = np.zeros((c.head_width, c.head_width))
    for pair in range(half):
        angle = position * frequency(pair, c)
        a, b = pair, pair + half
        matrix_HH[a, a] = matrix_HH[b, b] = np.cos(angle)
        matrix_HH[a, b], matrix_HH[b, a] = -np.sin(angle), np.sin(angle)
    return matrix_HH * (0.1 * np.log(c.rope_factor) + 1 if c.rope_scaling == "yarn" else 1)


# --- one layer -------------------------------------------------------------------------------


def rms_norm(x, scale_D, eps: float) -> Any:
    return scale_D * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def gelu(x) -> Any:
    """The tanh form, arXiv:1606.08415."""
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x) -> Any:
    return x / (1 + np.exp(-x))


def mlp(x_TD, p: dict[str, Any], c: ModelConfig) -> Any:
    up_TF = x_TD @ p["w_up"]
    match c.activation:
        case "gelu":
            hidden_TF = gelu(up_TF)
        case "relu2":
            hidden_TF = np.where(up_TF > 0, up_TF**2, 0.0)
        case "geglu":
            hidden_TF = gelu(x_TD @ p["w_gate"]) * up_TF
        case "swiglu":
            hidden_TF = silu(x_TD @ p["w_gate"]) * up_TF
    return hidden_TF @ p["w_down"]


def self_attention(x_TD, p: dict[str, Any], c: ModelConfig, window: int | None) -> Any:
    def heads(w_DNH, norm: str | None) -> Any:
        """One projection (1, T, heads, H); queries and keys are normalised, then turned."""
        out = []
        for n in range(w_DNH.shape[1]):
            head_TH = x_TD @ w_DNH[:, n]
            if norm is not None and c.qk_norm:
                head_TH = rms_norm(head_TH, p[norm]["scale"], c.norm_eps)
            if norm is not None:
                head_TH = np.array([rotation(t, c) @ h_H for t, h_H in enumerate(head_TH)])
            out.append(head_TH)
        return np.stack(out, axis=1)[None]

    q, k, v = heads(p["wq"], "q_norm"), heads(p["wk"], "k_norm"), heads(p["wv"], None)
    newest = len(x_TD) if window is None else window

    def sees(_, t, s):
        return t - newest < s <= t

    scores = {
        "scale": c.head_width**-0.5,
        "softcap": c.attention_softcap,
        "sinks_N": p.get("sinks"),
    }
    out_TNH = attention(q, k, v, sees, **scores)[0]
    return sum(out_TNH[:, n] @ p["wo"][n] for n in range(c.num_heads))


# --- the model -------------------------------------------------------------------------------


def layer_params(params: dict[str, Any], i: int, c: ModelConfig) -> dict[str, Any]:
    """Parameters of layer i: every layer of the pattern's period is stacked over the periods."""
    period, stack = len(c.layer_pattern), "dense_layers"
    if i >= c.num_dense_layers:
        i, stack = i - c.num_dense_layers, "layers"

    def is_dict(p):
        return hasattr(p, "items")  # autograd's dicts are no `dict`

    def pick(p):
        return {k: pick(v) for k, v in p.items()} if is_dict(p) else p[i // period]

    return pick(params[stack][f"block_{i % period}"])


def document_logits(
    params: dict[str, Any], tokens_T, c: ModelConfig, routed: list[Routed] | None = None
) -> Any:
    """Logits (T, V) of one document that stands alone; what its routers did goes to `routed`."""
    x_TD = np.array([params["embed"]["table"][token] for token in tokens_T])
    for i in range(c.num_layers):
        p = layer_params(params, i, c)
        window = c.window if c.layer_pattern[i % len(c.layer_pattern)] == "local" else None
        h_TD = rms_norm(x_TD, p["attention_norm"]["scale"], c.norm_eps)
        x_TD = x_TD + self_attention(h_TD, p["attention"], c, window)
        h_TD = rms_norm(x_TD, p["mlp_norm"]["scale"], c.norm_eps)
        if "moe" in p:
            y_TD, did = mixture(h_TD, p["moe"], c, mlp)
            x_TD = x_TD + y_TD
            if routed is not None:
                routed.append(did)
        else:
            x_TD = x_TD + mlp(h_TD, p["mlp"], c)
    x_TD = rms_norm(x_TD, params["final_norm"]["scale"], c.norm_eps)
    table_VD = params["embed" if c.tied_embeddings else "output"]["table"]
    logits_TV = x_TD @ table_VD.T
    return (
        logits_TV
        if c.logit_softcap is None
        else c.logit_softcap * np.tanh(logits_TV / c.logit_softcap)
    )


# --- the loss --------------------------------------------------------------------------------


class Sums(NamedTuple):
    nats: Any
    z_squares: Any
    correct: Any
    tokens: Any
    routers: Any = 0.0  # their weighted losses


def documents(segment_ids_BT) -> Iterator[tuple[int, slice]]:
    """(row, positions) of every document: the runs of one id.  Id 0 is padding."""
    for b, ids_T in enumerate(np.asarray(segment_ids_BT)):
        start = 0
        for t in range(1, len(ids_T) + 1):
            if t == len(ids_T) or ids_T[t] != ids_T[start]:
                if ids_T[start] != 0:
                    yield b, slice(start, t)
                start = t


def loss_sums(params: dict[str, Any], batch: dict[str, Any], c: ModelConfig) -> Sums:
    """The sums of jaxlm/loss.py, document by document and position by position."""
    nats = z_squares = correct = 0.0
    routed: list[list[list[Routed]]] = [[] for _ in batch["tokens"]]
    for b, where in documents(batch["segment_ids"]):
        routed[b].append([])
        logits_TV = document_logits(params, batch["tokens"][b, where], c, routed[b][-1])
        rows = zip(
            logits_TV,
            batch["targets"][b, where],
            batch["weights"][b, where],
            strict=True,
        )
        for logits_V, target, weight in rows:
            peak = np.max(logits_V)
            log_normaliser = peak + np.log(np.sum(np.exp(logits_V - peak)))
            nats = nats + weight * (log_normaliser - logits_V[target])
            z_squares = z_squares + weight * log_normaliser**2
            correct = correct + weight * (np.argmax(logits_V) == target)
    tokens = float(np.sum(batch["weights"]))
    return Sums(nats, z_squares, correct, tokens, router_losses(routed, c))


def loss_and_grads(
    params: dict[str, Any], batch: dict[str, Any], c: ModelConfig, z_loss: float = 0.0
) -> tuple[float, dict[str, Any]]:
    """nats + z_loss * z_squares + the routers', summed over the batch, and its gradient."""

    def objective(p: dict[str, Any]) -> Any:
        sums = loss_sums(p, batch, c)
        return sums.nats + z_loss * sums.z_squares + sums.routers

    return autograd.value_and_grad(objective)(params)
