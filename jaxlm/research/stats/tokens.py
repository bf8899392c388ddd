# SPDX-License-Identifier: Apache-2.0
"""How many tokens a config needs for another one's final loss: the ratio, with its interval.

For each seed the target is the baseline's final loss.  Each arm's validation curve is smoothed over
three evaluations, and reaches the target where a straight line between two of them crosses it for
the first time.  ln(arm's tokens / baseline's tokens), a number per seed, is averaged; its t interval
is that of the ratio on the log scale.  Inside one run with a decaying learning rate the loss falls
last of all for the schedule's sake, so an arm looks no better than it is.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxlm.research.stats.paired import t_interval


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Arm's tokens over the baseline's; below 1 is better.

    An arm that never reached the target needs more than it was given: then `ratio` is only a lower
    bound, and `high` is inf.
    """

    ratio: float
    low: float
    high: float
    n: int  # seeds
    not_reached: int  # of them


def smoothed(losses: Sequence[float]) -> list[float]:
    """Centred means of three; the first and the last stay as they are."""
    inner = [sum(losses[i - 1 : i + 2]) / 3 for i in range(1, len(losses) - 1)]
    return [*losses[:1], *inner, *losses[-1:]] if len(losses) > 1 else list(losses)


def tokens_to(tokens: Sequence[float], losses: Sequence[float], target: float) -> float:
    """First tokens at which the smoothed curve is at the target or below; inf where it never is.

    tokens: rising, one per evaluation.  Before the first evaluation nothing is known.
    """
    curve = smoothed(losses)
    for i, loss in enumerate(curve):
        if loss <= target:
            if i == 0:
                return float(tokens[0])
            share = (curve[i - 1] - target) / (curve[i - 1] - loss)
            return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))
    return math.inf


def ratio_of(
    arm: Sequence[float], baseline: Sequence[float], given: Sequence[float], alpha: float = 0.05
) -> Ratio:
    """From tokens to the target, per seed; `given` are the arm's tokens in all.

    Raises ValueError without a pair, and for a baseline that does not reach its own final loss.
    """
    if not arm or not all(map(math.isfinite, baseline)):
        raise ValueError("a ratio needs pairs in which the baseline reaches its own final loss")
    least = [t if math.isfinite(t) else most for t, most in zip(arm, given, strict=True)]
    logs = np.log(np.array(least) / np.array(baseline))
    low, high = t_interval(logs, alpha)
    not_reached = sum(not math.isfinite(t) for t in arm)
    return Ratio(
        ratio=math.exp(float(logs.mean())),
        low=math.exp(low),
        high=math.inf if not_reached or high == math.inf else math.exp(high),
        n=len(logs),
        not_reached=not_reached,
    )
