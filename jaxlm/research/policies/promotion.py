# SPDX-License-Identifier: Apache-2.0
"""The gate: what was kept at the small scale is adopted only if it also holds at a larger one.

All candidates run together in Hadamard designs at scale 1, each idea's own effect estimated with
se = 2 sigma / sqrt(runs); after each design those that are settled leave (good ones stay in all
arms).  An idea is adopted when the posterior that it is good there reaches `ADOPT`; what the budget
does not settle is not adopted.  The prior is that of a kept idea: probably good, perhaps nothing,
perhaps the sign turns with scale.
"""

from collections.abc import Sequence

import numpy as np

from jaxlm.research.policies.base import Knowledge, Outcome, Plan, Purse
from jaxlm.research.policies.designs import design, effects, largest_order, order_for
from jaxlm.research.policies.evidence import RIDGE, block_trials
from jaxlm.research.stats.noise import Noise, combine
from jaxlm.research.stats.shrink import Prior, posterior

ADOPT = 0.8
SETTLED = 0.03  # from here on either way an idea needs no more runs
EMPTY = 2
SCALE = 1


def promote(ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge) -> Plan:
    """Kept: the ideas adopted.  claimed_gain: the sum of their shrunken effects at the large scale.

    budget counts in runs of the small scale, as everywhere; a large one costs scale_costs[1].
    """
    purse, rng = Purse(budget, knowledge.scale_costs), np.random.default_rng(seed)
    names = sorted(ideas)
    prior = Prior(0.7, 0.1, 0.2, knowledge.prior.mean_effect)
    info, total = np.full(len(names), 1e-9), np.zeros(len(names))
    measured: Noise | None = None
    guess = knowledge.noise or Noise(knowledge.prior.mean_effect, 1)
    post = posterior(np.zeros(len(names)), 1e3, prior)
    while names:
        is_open = (post.p_good > SETTLED) & (post.p_good < 1 - SETTLED)
        index = np.flatnonzero(is_open)
        runs = int(purse.left / knowledge.scale_costs[SCALE])
        size = largest_order(runs)
        index = index[: max(0, size - 1 - EMPTY)]
        if not index.size:
            break
        sure = frozenset(names[i] for i in np.flatnonzero(post.p_good >= 1 - SETTLED))
        block = design([names[i] for i in index], rng, order_for(index.size, EMPTY))
        seed += len(block.arms)
        trials = block_trials(block, seed, scale=SCALE, base=sure)
        purse.pay(trials)
        found = effects(block, (yield trials), RIDGE)
        info[index] += found.information
        total[index] += found.information * found.estimate
        if found.noise_df:
            new = Noise((found.noise_square_sum / found.noise_df) ** 0.5, found.noise_df)
            measured = combine([measured, new])
        noise = combine([measured, Noise(guess.sigma, min(guess.df, 4.0))])
        assert noise is not None
        post = posterior(total / info, noise.sigma / np.sqrt(info), prior)
    means = {name: float(m) for name, m in zip(names, post.mean, strict=True)}
    adopted = frozenset(n for n, p in zip(names, post.p_good, strict=True) if p >= ADOPT)
    return Outcome(adopted, -sum(means[name] for name in adopted), effects=means)
