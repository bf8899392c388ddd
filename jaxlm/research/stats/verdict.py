# SPDX-License-Identifier: Apache-2.0
"""From losses to verdicts: a pure function, fixed by its rules before the first run.

{arm: {seed: loss}} with a baseline among the arms; per arm the effect arm - baseline over common
seeds, its interval, and keep, discard or inconclusive:
- keep: the interval lies below -smallest_effect, and the arm is a discovery among all arms
  (Benjamini-Hochberg at alpha);
- discard: the interval lies above -smallest_effect;
- inconclusive: neither.  One seed is always inconclusive, unless noise was pooled before; so is an arm
  with fewer completed seeds than the baseline, for those that fail are not the best.

With a margin the arms are simplifications, and the bound is +margin: kept is what is no worse than that
(one of the two one-sided tests of Schuirmann 1987; both together make it equivalent).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from jaxlm.core.errors import ConfigError
from jaxlm.core.typed import nearest
from jaxlm.research.stats.discovery import adjusted
from jaxlm.research.stats.noise import Noise, combine
from jaxlm.research.stats.paired import MAX_EXACT, differences, sign_flip
from jaxlm.research.stats.sequential import confidence_sequence, e_value
from jaxlm.research.stats.shrink import Floats

Losses = Mapping[str, Mapping[int, float | None]]  # arm -> seed -> loss; None: not completed
Decision = Literal["keep", "discard", "inconclusive"]
Test = Literal["t", "sign_flip", "sequence"]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Of deciding.  test: t, at a number of seeds fixed before; sign_flip, as t, and its p decides
    too; sequence, where seeds are added as one goes (wider, and valid whenever one looks)."""

    smallest_effect: float = 0.0  # nats, >= 0
    margin: float | None = None  # nats, > 0
    alpha: float = 0.05
    test: Test = "t"

    def __post_init__(self) -> None:
        if not self.smallest_effect >= 0:
            raise ConfigError(f"smallest_effect must be >= 0, got {self.smallest_effect!r}")
        if self.margin is not None and not self.margin > 0:
            raise ConfigError(f"margin must be > 0, got {self.margin!r}")
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha must be between 0 and 1, got {self.alpha!r}")
        if self.test not in ("t", "sign_flip", "sequence"):
            raise ConfigError(f"test must be t, sign_flip or sequence, got {self.test!r}")

    @property
    def bound(self) -> float:
        """What an effect must lie below."""
        return 0.0 - self.smallest_effect if self.margin is None else self.margin  # 0, not -0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Of one arm.  Effects in the losses' unit; negative is better."""

    arm: str
    decision: Decision
    effect: float  # nan without a common seed
    low: float
    high: float
    p_value: float  # one-sided, that the effect is at the bound or worse; nan if unknown
    q_value: float  # the smallest false-discovery rate at which it is a discovery among the arms
    noise_floor: float  # sd of one paired difference; nan if unknown
    noise_df: float
    n: int  # common seeds
    reason: str


def judge(
    losses: Losses, baseline: str, rules: Rules, pooled: Noise | None = None
) -> dict[str, Verdict]:
    """A verdict for every arm but the baseline.

    pooled: noise of paired differences from earlier, at the same scale and horizon.
    Raises ConfigError for a baseline that is not among the arms.
    """
    if baseline not in losses:
        raise ConfigError(f"baseline {baseline!r} is not an arm; {nearest(baseline, losses)}")
    arms = {a: differences(runs, losses[baseline]) for a, runs in losses.items() if a != baseline}
    p_values = {arm: _p_value(d, rules, pooled) for arm, d in arms.items()}
    known = [arm for arm, p in p_values.items() if not math.isnan(p)]
    q_values = dict(zip(known, adjusted([p_values[arm] for arm in known]), strict=True))
    full = sum(loss is not None for loss in losses[baseline].values())
    found = {
        arm: _verdict(arm, d, p_values[arm], float(q_values.get(arm, math.nan)), rules, pooled)
        for arm, d in arms.items()
    }
    return {arm: _unless_runs_failed(v, full, losses[arm]) for arm, v in found.items()}


def _unless_runs_failed(verdict: Verdict, full: int, runs: Mapping[int, float | None]) -> Verdict:
    failed = sum(loss is None for loss in runs.values())
    if verdict.decision != "keep" or not failed or verdict.n >= full:
        return verdict
    why = f"{failed} of {len(runs)} seeds did not complete: what is left of them is a selection"
    return dataclasses.replace(verdict, decision="inconclusive", reason=why)


def _spread(d: Floats, pooled: Noise | None) -> Noise | None:
    own = Noise(float(np.std(d, ddof=1)), d.size - 1) if d.size > 1 else None
    return combine([own, pooled])


def _p_value(d: Floats, rules: Rules, pooled: Noise | None) -> float:
    """One-sided, against effect < bound."""
    noise = _spread(d, pooled)
    if noise is None or not d.size:
        return math.nan
    shifted = d - rules.bound
    if rules.test == "sign_flip":
        return sign_flip(shifted, side=-1)
    if rules.test == "sequence":
        e = e_value(shifted, alpha=rules.alpha, noise=pooled)
        return min(1.0, 1 / e) if shifted.mean() < 0 else 1.0
    if noise.sigma == 0:
        return float(shifted.mean() >= 0)
    return float(stdtr(noise.df, shifted.mean() / (noise.sigma / math.sqrt(d.size))))


def _interval(d: Floats, rules: Rules, pooled: Noise | None) -> tuple[float, float]:
    noise = _spread(d, pooled)
    if noise is None:
        return -math.inf, math.inf
    if rules.test == "sequence":
        return confidence_sequence(d, alpha=rules.alpha, noise=pooled)
    half = float(stdtrit(noise.df, 1 - rules.alpha / 2)) * noise.sigma / math.sqrt(d.size)
    return float(d.mean()) - half, float(d.mean()) + half


def _verdict(
    arm: str, d: Floats, p: float, q: float, rules: Rules, pooled: Noise | None
) -> Verdict:
    nan, inf = math.nan, math.inf
    if not d.size:
        why = "no seed completed in both this arm and the baseline"
        return Verdict(arm, "inconclusive", nan, -inf, inf, nan, nan, nan, 0, 0, why)
    noise = _spread(d, pooled)
    low, high = _interval(d, rules, pooled)
    decision, reason = _decide(d, low, high, p, q, rules, noise)
    floor, df = (noise.sigma, noise.df) if noise else (nan, 0)
    return Verdict(arm, decision, float(d.mean()), low, high, p, q, floor, df, d.size, reason)


def _decide(
    d: Floats, low: float, high: float, p: float, q: float, rules: Rules, noise: Noise | None
) -> tuple[Decision, str]:
    bound, alpha = rules.bound, rules.alpha
    if noise is None:
        return "inconclusive", (
            "one seed: neither the noise nor the sign of the effect can be told from it; "
            "run at least 2 seeds, or pool the noise of earlier runs"
        )
    if low > bound:
        worse = "the smallest effect worth keeping" if rules.margin is None else "the margin"
        return "discard", f"the interval lies above {worse}"
    if noise.sigma == 0 == bound and not d.any():
        return "inconclusive", "no seed shows any difference"
    if high >= bound:
        way = "more seeds, or a smaller --smallest-effect" if bound < 0 else "more seeds"
        return "inconclusive", f"the interval includes {bound:g}: {way}"
    if rules.test == "sign_flip" and d.size <= MAX_EXACT and 2.0**-d.size > alpha / 2:
        return "inconclusive", f"{d.size} seeds cannot reach p <= {alpha / 2:g} by sign flips"
    if rules.test == "sign_flip" and p > alpha / 2:
        return "inconclusive", f"the sign-flip test does not agree: p = {p:.3g}"
    if q > alpha:
        return "inconclusive", f"one of several arms, and no discovery among them: q = {q:.3g}"
    if rules.margin is None:
        return "keep", "the interval lies below the smallest effect worth keeping"
    if low > -rules.margin:
        return "keep", f"within {rules.margin:g}, better or worse"
    return "keep", f"no worse than {rules.margin:g}"
