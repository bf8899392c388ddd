# SPDX-License-Identifier: Apache-2.0
"""Validation in bits per byte, which compares models of any tokenizer, and compressors too.

    bpb = sum of nats over all targets / (ln 2 * bytes of text those targets stand for)

Legend: B batch  T positions  V vocabulary
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.types import Batch, Params
from jaxlm.loss import batch_loss
from jaxlm.model.transformer import Model


class EvalSums(NamedTuple):
    """Sums of one batch, f32 scalars (whole numbers are exact up to 2^24 per batch)."""

    nats: jax.Array
    correct: jax.Array
    tokens: jax.Array
    bytes: jax.Array


@dataclasses.dataclass(frozen=True)
class EvalTotals:
    """Sums over many batches, in float64; totals of several corpora add up."""

    nats: float
    correct: float
    tokens: float
    bytes: float

    def __add__(self, other: "EvalTotals") -> "EvalTotals":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return EvalTotals(*(a + b for a, b in pairs))

    def metrics(self) -> dict[str, float]:
        """Means by registered name."""
        return {
            "eval/bpb": self.nats / (math.log(2) * self.bytes),
            "eval/loss_nats": self.nats / self.tokens,
            "eval/accuracy_frac": self.correct / self.tokens,
            "eval/tokens": self.tokens,
            "eval/bytes": self.bytes,
        }


EvalStep = Callable[[Params, Batch], EvalSums]


def make_eval_step(model: Model, bytes_per_token_V: np.ndarray) -> EvalStep:
    """(params, batch) -> EvalSums, jitted; the batch may be sharded over a mesh."""

    def step(params: Params, batch: Batch) -> EvalSums:
        sums = batch_loss(model, params, batch)
        bytes_BT = jnp.asarray(bytes_per_token_V, jnp.float32)[batch["targets"]]
        num_bytes = jnp.sum(bytes_BT * batch["weights"])
        return EvalSums(sums.nats, sums.correct, sums.tokens, num_bytes)

    return jax.jit(step)


def evaluate(eval_step: EvalStep, params: Params, batches: Iterable[Batch]) -> EvalTotals:
    """Totals over all batches, which are dispatched before the first result is fetched."""
    sums = jax.device_get([eval_step(params, batch) for batch in batches])
    return EvalTotals(*(math.fsum(map(float, column)) for column in zip(*sums, strict=True)))
