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

from jaxlm.research.policies.designs import largest_order, room, roomy_order
from jaxlm.research.policies.evidence import SMOKE
from jaxlm.research.stats.shrink import Prior, keep_set, posterior

NUM_DRAWN = 2000
SURE = 0.95  # P(good) from early runs alone with which an idea needs no full-length design
SHARES = tuple(k / 20 for k in range(21))


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
    block: int  # runs of a screening block, at most
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


def next_block(budget: float, fraction: float, block: int, num_ideas: int) -> tuple[int, int]:
    """(new ideas, runs) of the screening block that comes next; (0, 0) where the budget has none."""
    size = largest_order(min(block, int(budget / (fraction + SMOKE))))
    count = min(room(size), num_ideas) if size else 0
    return (count, roomy_order(count)) if count > 0 else (0, 0)


def _screening(now: Situation, fraction: float, budget: float) -> tuple[int, float, float]:
    """(ideas, their cost, runs of a block per idea in the mean) of blocks while `budget` lasts."""
    ideas, cost, runs = 0, 0.0, 0
    while True:
        count, size = next_block(budget - cost, fraction, now.block, now.num_ideas - ideas)
        if not count:
            return ideas, cost, runs / max(ideas, 1)
        ideas += count
        cost += count * SMOKE + size * fraction
        runs += count * size


def expected_gain(now: Situation, fraction: float, share: float) -> float:
    """In nats; the same draws for every division, so that they compare."""
    is_early = fraction < 1
    new, cost, block = _screening(now, fraction, now.budget * share)
    size = largest_order(now.budget - cost)  # of the second stage
    waiting = now.num_waiting if is_early else 0
    screened = new + waiting
    if screened == 0 or (size == 0 and is_early):
        return 0.0  # nothing is left to screen, or to keep: that takes full-length runs
    rng = np.random.default_rng(0)
    signs = rng.choice(
        [-1, 0, 1], NUM_DRAWN, p=[now.prior.p_good, now.prior.p_null, now.prior.p_bad]
    )
    scale = np.where(signs < 0, now.prior.mean_effect, now.prior.harm)
    effect = signs * scale * rng.exponential(size=NUM_DRAWN)
    runs = (new * block + waiting * now.block) / screened
    noise = (now.sigma_early if is_early else now.sigma) * 2 / np.sqrt(runs)
    se = float(np.hypot(noise, now.tau if is_early else 0.0))
    x = effect + se * rng.standard_normal(NUM_DRAWN)
    post = posterior(x, se, now.prior)
    sure_gain = 0.0
    if size:
        sure = post.p_good >= SURE
        sure_gain = -effect[sure].sum()
        best = np.argsort(np.where(sure, np.inf, -post.upside), kind="stable")
        count = round(min(1.0, room(size) / screened) * NUM_DRAWN)
        chosen = best[: min(count, NUM_DRAWN - int(sure.sum()))]  # what is sure is in all arms
        se2 = 2 * now.sigma / np.sqrt(size)
        x2 = effect[chosen] + se2 * rng.standard_normal(NUM_DRAWN)[chosen]
        weight = se2**-2 + se**-2
        post = posterior((x2 / se2**2 + x[chosen] / se**2) / weight, weight**-0.5, now.prior)
        effect = effect[chosen]
    kept = keep_set(post, now.false_discovery, null_helps=now.prior.good_of_active)
    return float(sure_gain - effect[kept].sum()) / NUM_DRAWN * screened
