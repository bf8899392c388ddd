# SPDX-License-Identifier: Apache-2.0
"""The rivals: one idea at a time, on top of what was kept so far.

greedy: one run; keep if its loss is below the best one yet (karpathy/autoresearch, senpai, AIDE).
greedy with a margin: below it by 2 sigma.  replicate-all: every candidate and the incumbent run on
the same seeds until the posterior that the idea is good is above 0.8 or below 0.2.
When all ideas were tried, the passed-over ones come again with another seed, while budget is left.
"""

import functools
from collections.abc import Generator, Sequence

import numpy as np

from jaxlm.research.policies.base import BASELINE, Knowledge, Losses, Outcome, Plan, Purse, Trial
from jaxlm.research.stats.shrink import posterior

SIGMA_GUESS = 5e-4  # where nobody has measured it: the level of the public log
MAX_REPLICATES = 4
KEEP, DROP = 0.8, 0.2


def greedy(
    ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge, *, margin: float = 0.0
) -> Plan:
    """margin: in sigmas, by which a candidate has to beat the best loss."""
    purse = Purse(budget, knowledge.scale_costs)
    least = margin * (knowledge.noise.sigma if knowledge.noise else SIGMA_GUESS)
    least = max(least, knowledge.smallest_effect)
    kept, effects = BASELINE, dict[str, float]()
    start = best = yield from _single(purse, BASELINE, seed)
    todo, run_seed = list(ideas), seed
    while todo and start is not None and best is not None:
        passed = []
        for idea in todo:
            if not purse.affords([Trial(kept | {idea}, run_seed)]):
                return Outcome(kept, start - best, effects=effects)
            loss = yield from _single(purse, kept | {idea}, run_seed)
            if loss is not None and loss < best - least:
                effects[idea] = loss - best
                kept, best = kept | {idea}, loss
            else:
                passed.append(idea)
        todo, run_seed = passed, run_seed + 1
    return Outcome(kept, (start or 0.0) - (best or 0.0), effects=effects)


def _single(
    purse: Purse, arm: frozenset[str], seed: int
) -> Generator[list[Trial], Losses, float | None]:
    trials = [Trial(arm, seed)]
    purse.pay(trials)
    return (yield trials)[0]


greedy_margin = functools.partial(greedy, margin=2.0)


def replicate_all(ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge) -> Plan:
    """Paired seeds for every candidate and the incumbent until the posterior is clear."""
    purse = Purse(budget, knowledge.scale_costs)
    sigma = knowledge.noise.sigma if knowledge.noise else SIGMA_GUESS
    kept, gain, effects = BASELINE, 0.0, dict[str, float]()
    for idea in ideas:
        differences: list[float] = []
        p_good, mean = 0.5, 0.0
        while DROP < p_good < KEEP and len(differences) < MAX_REPLICATES:
            run_seed = seed + len(differences)
            pair = [Trial(kept | {idea}, run_seed), Trial(kept, run_seed)]
            if not purse.affords(pair):
                return Outcome(kept, gain, effects=effects)
            purse.pay(pair)
            arm, base = yield pair
            if arm is None or base is None:
                break
            differences.append(arm - base)
            mean = float(np.mean(differences))
            post = posterior(mean, sigma * np.sqrt(2 / len(differences)), knowledge.prior)
            p_good = float(post.p_good)
        if p_good >= KEEP:
            kept, gain, effects[idea] = kept | {idea}, gain - mean, mean
    return Outcome(kept, gain, effects=effects)
