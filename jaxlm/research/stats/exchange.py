# SPDX-License-Identifier: Apache-2.0
"""What an effect is worth: nats of loss in tokens, or FLOPs, of training that they save.

The baseline's loss over training length T is fitted as L(T) = L0 + A T^-alpha.  An arm that ends at
L(T) + effect is worth the baseline at T' with L(T') = L(T) + effect: it saves the share 1 - T / T'.
The points must be final losses of runs of several lengths, each with its whole schedule; inside one
run with a decaying learning rate the loss falls for the schedule's sake, and an effect would look
cheap.  FLOPs are proportional to tokens for one model, so the share is the same.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

NUM_BOOTSTRAP = 200
_ALPHAS = np.linspace(0.02, 1.5, 149)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """L(T) = floor + scale T^-alpha, nats."""

    floor: float
    scale: float
    alpha: float

    def __call__(self, tokens: float) -> float:
        return self.floor + self.scale * tokens**-self.alpha

    def tokens_to(self, loss: float) -> float:
        """inf at or below the floor, 0 for an infinite loss."""
        rest = loss - self.floor
        if rest <= 0:
            return math.inf
        power = (math.log(self.scale) - math.log(rest)) / self.alpha
        return math.exp(power) if power < 700 else math.inf


@dataclasses.dataclass(frozen=True)
class Saving:
    """The baseline needs `tokens` for the arm's loss; share = 1 - own tokens / these.

    Negative shares cost.  At a loss below the curve's floor no length suffices: tokens inf, share 1.
    """

    tokens: float
    share: float
    low: float  # of the share
    high: float


def fit_power_law(tokens: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """Least squares; alpha on a grid, floor and scale exactly.

    Raises ValueError for fewer than 3 lengths, or where the loss does not fall with length.
    """
    t, loss = np.asarray(tokens, float), np.asarray(losses, float)
    if np.unique(t).size < 3:
        raise ValueError(f"needs runs of at least 3 lengths, got {np.unique(t).size}")
    unit = float(np.exp(np.log(t).mean()))
    x = (t / unit)[None] ** -_ALPHAS[:, None]  # (alpha, point)
    x_mean, y = x.mean(axis=1, keepdims=True), loss - loss.mean()
    scale = ((x - x_mean) @ y) / ((x - x_mean) ** 2).sum(axis=1)
    rest = y - scale[:, None] * (x - x_mean)
    best = int(np.argmin((rest**2).sum(axis=1)))
    if scale[best] <= 0:
        raise ValueError("the baseline's loss does not fall with the length of training")
    alpha, a = float(_ALPHAS[best]), float(scale[best])
    return PowerLaw(float(loss.mean()) - a * float(x_mean[best, 0]), a * unit**alpha, alpha)


def savings(
    tokens: Sequence[float],
    losses: Sequence[float],
    at: float,
    effect: float,
    interval: tuple[float, float],
    *,
    seed: int = 0,
) -> Saving:
    """Of an effect (nats, negative is good) with its interval, measured at `at` tokens.

    The interval of the share takes the effect's two ends through 200 refits of the curve to
    resampled residuals, and their outer 2.5 % points: both uncertainties, on the safe side.
    """
    law = fit_power_law(tokens, losses)
    fitted = np.array([law(t) for t in tokens])
    rest = (np.asarray(losses, float) - fitted) * math.sqrt(len(fitted) / max(1, len(fitted) - 3))
    rng = np.random.default_rng(seed)
    ends = []
    for _ in range(NUM_BOOTSTRAP):
        try:
            other = fit_power_law(tokens, list(fitted + rng.choice(rest, rest.size)))
        except ValueError:
            continue  # a resample without a fall says nothing of the rate
        ends.append([_share(other, at, end) for end in interval])
    low, high = np.quantile(np.array(ends), [0.025, 0.975], axis=0, method="nearest")  # of infs
    needed = law.tokens_to(law(at) + effect)
    return Saving(needed, _share(law, at, effect), float(low[1]), float(high[0]))


def _share(law: PowerLaw, at: float, effect: float) -> float:
    tokens = law.tokens_to(law(at) + effect)
    return 1 - at / tokens if tokens else -math.inf
