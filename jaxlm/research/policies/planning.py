# SPDX-License-Identifier: Apache-2.0
"""How to divide a budget: few runs for each of many ideas, or many for few?

Two stages: screen ideas in factorial blocks, at a fraction of training or at full length; then run
the promising ones at full length in one design, where each effect has se = 2 sigma / sqrt(runs),
however many ideas share the runs.  The best division depends on noise to effect, on how well early
runs foretell late ones, and on how many ideas there are.  So play each division through on ideas
drawn from the prior, and take the one with the largest gain at the wanted false-discovery rate.
"""

import dataclasses

import numpy as np

from jaxlm.research.stats.shrink import Prior, keep_set, posterior

NUM_DRAWN = 2000
SURE = 0.95  # P(good) from early runs alone with which an idea needs no full-length design
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class Situation:
    """What a plan depends on; sizes in nats, costs in full runs."""

    prior: Prior
    sigma: float
    sigma_early: float
    tau: float  # sd of early effect - late effect
    early_fraction: float
    budget: float
    num_ideas: int  # not yet run
    num_waiting: int  # screened early, not yet run at full length
    block: int  # runs of a screening block
    overhead: float  # runs of screening per idea, at least 1
    false_discovery: float


@dataclasses.dataclass(frozen=True)
class Division:
    """Screen at `fraction` of training with `share` of the budget, the rest for the second stage."""

    fraction: float
    share: float
    gain: float  # expected


def divide(now: Situation) -> Division:
    """The division with the largest expected gain."""
    options = [(f, s) for f in (now.early_fraction, 1.0) for s in SHARES]
    return max((Division(f, s, expected_gain(now, f, s)) for f, s in options), key=lambda d: d.gain)


def expected_gain(now: Situation, fraction: float, share: float) -> float:
    """In nats; the same draws for every division, so that they compare."""
    rng = np.random.default_rng(0)
    signs = rng.choice(
        [-1, 0, 1], NUM_DRAWN, p=[now.prior.p_good, now.prior.p_null, now.prior.p_bad]
    )
    size = np.where(signs < 0, now.prior.mean_effect, now.prior.harm)
    effect = signs * size * rng.exponential(size=NUM_DRAWN)
    is_early = fraction < 1
    noise = (now.sigma_early if is_early else now.sigma) * 2 / np.sqrt(now.block)
    se = float(np.hypot(noise, now.tau if is_early else 0.0))
    x = effect + se * rng.standard_normal(NUM_DRAWN)
    new = min(now.budget * share / (fraction * now.overhead), now.num_ideas)
    runs = now.budget - new * fraction * now.overhead
    screened = new + (now.num_waiting if is_early else 0)
    post = posterior(x, se, now.prior)
    sure_gain = 0.0
    if screened <= 0 or (runs < 4 and is_early):
        return 0.0  # nothing is left to screen, or to keep: that takes full-length runs
    if runs >= 4:
        count = round(min(1.0, (runs - 2) / screened) * NUM_DRAWN)
        sure = post.p_good >= SURE
        sure_gain = -effect[sure].sum()
        chosen = np.argsort(np.where(sure, 0.0, -post.upside), kind="stable")[:count]
        se2 = 2 * now.sigma / np.sqrt(runs)
        x2 = effect[chosen] + se2 * rng.standard_normal(NUM_DRAWN)[chosen]
        weight = se2**-2 + se**-2
        post = posterior((x2 / se2**2 + x[chosen] / se**2) / weight, weight**-0.5, now.prior)
        effect = effect[chosen]
    kept = keep_set(post, now.false_discovery)
    return float(sure_gain - effect[kept].sum()) / NUM_DRAWN * screened
