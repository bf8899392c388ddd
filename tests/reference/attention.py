# SPDX-License-Identifier: Apache-2.0
"""Attention in float64, one query of one head at a time: what every implementation is held to.

A query is given the keys that it sees as a list, so there is no mask to get wrong.  Arrays are
autograd's, so that the gradients are float64 too.

Legend: B batch  T query positions  S key positions  N query heads  K kv heads  H head width
"""

from collections.abc import Callable
from typing import Any

import autograd.numpy as np

Sees = Callable[[int, int, int], bool]  # (row, query's index, key's index) -> does it look?


def attend(query_H, keys_SH, values_SH, scale: float, softcap: float | None, sink) -> Any:
    """Mean of the values, weighted by the softmax of the capped scores.

    A sink is one more key with the score `sink` and the value zero.  No keys at all give zeros.
    """
    if len(keys_SH) == 0:
        return np.zeros(values_SH.shape[-1])
    scores_S = scale * np.dot(keys_SH, query_H)
    if softcap is not None:
        scores_S = softcap * np.tanh(scores_S / softcap)
    if sink is not None:
        scores_S = np.concatenate([scores_S, np.array([sink])])
        values_SH = np.concatenate([values_SH, np.zeros((1, values_SH.shape[-1]))])
    odds_S = np.exp(scores_S - np.max(scores_S))
    return np.dot(odds_S / np.sum(odds_S), values_SH)


def attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    sees: Sees,
    *,
    scale: float,
    softcap: float | None = None,
    sinks_N=None,
) -> Any:
    """(B, T, N, width of v).  Query heads share kv heads in order: the first N/K have the first."""
    B, T, N, _ = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]

    def one(b: int, t: int, n: int):
        seen = [s for s in range(S) if sees(b, t, s)]
        kv_head = n * K // N
        keys_SH, values_SH = k_BSKH[b, seen, kv_head], v_BSKH[b, seen, kv_head]
        sink = None if sinks_N is None else sinks_N[n]
        return attend(q_BTNH[b, t, n], keys_SH, values_SH, scale, softcap, sink)

    return np.array([[[one(b, t, n) for n in range(N)] for t in range(T)] for b in range(B)])
