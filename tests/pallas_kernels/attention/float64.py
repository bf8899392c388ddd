# SPDX-License-Identifier: Apache-2.0
"""Attention and its gradients in float64 NumPy, by the definition, on cases chosen to hurt.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  G = N/K
        H width of q and k  V width of v
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    B: int = 1
    T: int = 129
    S: int | None = None  # None: as T
    N: int = 1
    K: int = 1
    H: int = 16
    V: int = 16
    causal: bool = True
    window: int | None = None
    lengths: tuple[int, ...] | None = None  # of documents packed into each row
    softcap: float | None = None
    has_sinks: bool = False
    q_start: int | tuple[int, ...] = 0
    k_start: int = 0
    spread: float = 1.0  # of queries and keys: 1 leaves the scores bounded, 20 does not
    seed: int = 0

    @property
    def num_keys(self) -> int:
        return self.T if self.S is None else self.S

    @property
    def scale(self) -> float:
        return self.H**-0.5

    def arrays(self) -> dict[str, np.ndarray]:
        """q, k, v and the cotangents d_out and d_lse; every second sink is -inf, which is none."""
        rng = np.random.default_rng(self.seed)
        draw = lambda *shape: rng.normal(size=shape)
        B, T, S, N, K = self.B, self.T, self.num_keys, self.N, self.K
        return {
            "q": self.spread * draw(B, T, N, self.H),
            "k": self.spread * draw(B, S, K, self.H),
            "v": draw(B, S, K, self.V),
            "sinks": np.where(np.arange(N) % 2, -np.inf, draw(N)),
            "d_out": draw(B, T, N, self.V),
            "d_lse": draw(B, N, T),
        }

    def ids(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Row b begins b tokens into the first document; queries are the last T of the keys."""
        if self.lengths is None:
            return None
        ids = np.repeat(np.arange(len(self.lengths)), self.lengths)
        ids_BS = np.stack([np.append(ids[b:], [len(self.lengths)] * b) for b in range(self.B)])
        return ids_BS[:, self.num_keys - self.T :].astype(np.int32), ids_BS.astype(np.int32)

    def visible(self) -> np.ndarray:
        """(B, T, S) by the definition."""
        start_B11 = np.broadcast_to(self.q_start, self.B)[:, None, None] - self.k_start
        distance = start_B11 + np.arange(self.T)[:, None] - np.arange(self.num_keys)[None, :]
        visible = distance >= 0 if self.causal else np.ones_like(distance, bool)
        if self.window is not None:
            visible = visible & (np.abs(distance) < self.window)
        ids = self.ids()
        return visible if ids is None else visible & (ids[0][:, :, None] == ids[1][:, None, :])


def _softmax(case: Case, raw: np.ndarray, sinks_N: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weights of the keys and of the sink, log of their sum, and the slope of the soft-cap."""
    scores, slopes = raw, np.ones_like(raw)
    if case.softcap is not None:
        scores = case.softcap * np.tanh(raw / case.softcap)
        slopes = 1 / np.cosh(raw / case.softcap) ** 2
    scores = np.where(case.visible()[:, None], scores, -np.inf)
    sinks = sinks_N if case.has_sinks else np.full(case.N, -np.inf)
    sinks = np.broadcast_to(sinks[None, :, None, None], (*scores.shape[:3], 1))
    peak = np.maximum(np.max(scores, axis=-1, keepdims=True), sinks)
    peak = np.where(peak == -np.inf, 0.0, peak)
    weights, sink_weights = np.exp(scores - peak), np.exp(sinks - peak)
    total = np.sum(weights, axis=-1, keepdims=True) + sink_weights
    with np.errstate(divide="ignore"):
        lse = np.log(total) + peak
    total = np.where(total == 0, 1.0, total)
    return weights / total, sink_weights / total, lse, slopes


def expected(case: Case, x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """out (B, T, N, V), lse (B, N, T), and the gradients by q, k, v and sinks."""
    G = case.N // case.K
    k, v = (np.repeat(x[name], G, axis=2) for name in ("k", "v"))
    raw = case.scale * np.einsum("btnh,bsnh->bnts", x["q"], k)
    p, p_sink, lse, slopes = _softmax(case, raw, x["sinks"])
    dp = np.einsum("btnv,bsnv->bnts", x["d_out"], v)
    delta = np.sum(p * dp, axis=-1, keepdims=True) - x["d_lse"][..., None]
    d_raw = case.scale * slopes * p * (dp - delta)
    per_kv_head = lambda d: d.reshape(*d.shape[:2], case.K, G, -1).sum(3)
    return {
        "out": np.einsum("bnts,bsnv->btnv", p, v),
        "lse": lse[..., 0],
        "q": np.einsum("bnts,bsnh->btnh", d_raw, k),
        "k": per_kv_head(np.einsum("bnts,btnh->bsnh", d_raw, x["q"])),
        "v": per_kv_head(np.einsum("bnts,btnv->bsnv", p, x["d_out"])),
        "sinks": -np.sum(p_sink * delta, axis=(0, 2, 3)),
    }
