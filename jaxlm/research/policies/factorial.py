# SPDX-License-Identifier: Apache-2.0
"""Factorial screening, and pruning what another policy kept; both end on fresh seeds.

factorial: blocks of new ideas at full length in Hadamard designs (designs.py), each with its mirrored
runs if `foldover`; kept is what the posterior allows at the false-discovery rate.
prune_and_confirm: stop losers early for most of the budget, then one design of the ideas kept so far,
in which those that do not hold fall out.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jaxlm.research.policies.base import Knowledge, Plan, Purse, Trial, relay
from jaxlm.research.policies.confirm import confirm
from jaxlm.research.policies.designs import design, largest_order, order_for
from jaxlm.research.policies.early_stop import early_stop
from jaxlm.research.policies.evidence import SMOKE, Evidence, run_block, smoke_test

PAIRS = 2  # fresh seeds of baseline and final arm
BLOCK = 16
EMPTY = 1
PRUNE_RUNS = 32
SEEDS = 64  # apart: more than a block uses


def factorial(
    ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge, *, foldover: bool = False
) -> Plan:
    """Blocks of 14 ideas in 16 runs, or 32 with a foldover, while the budget lasts."""
    purse, evidence = Purse(budget, knowledge.scale_costs), Evidence(knowledge)
    rng, todo, next_seed = np.random.default_rng(seed), list(ideas), seed
    copies = 2 if foldover else 1
    while todo:
        runs = int((purse.left - 2 * PAIRS - BLOCK * SMOKE) / copies)
        size = largest_order(min(BLOCK, runs))
        if not size:
            break
        batch, todo = todo[: size - 1 - EMPTY], todo[size - 1 - EMPTY :]
        next_seed += SEEDS
        alive = yield from smoke_test(purse, batch, next_seed, evidence)
        if alive:
            block = design(alive, rng, order_for(len(alive), EMPTY), foldover=foldover)
            yield from run_block(purse, block, next_seed, 1.0, evidence)
    return (yield from _finish(purse, evidence, next_seed + SEEDS))


factorial_foldover = functools.partial(factorial, foldover=True)


def prune_and_confirm(ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge) -> Plan:
    """Early stopping with what the prune and the confirmation leave, at least half of the budget."""
    reserve = min(PRUNE_RUNS, budget / 3) + 2 * PAIRS
    if budget - reserve < 2:
        return (yield from early_stop(ideas, budget, seed, knowledge))
    purse, evidence = Purse(budget, knowledge.scale_costs), Evidence(knowledge)
    found = yield from relay(early_stop(ideas, budget - reserve, seed, knowledge), purse)
    candidates = found.effects
    rng, next_seed = np.random.default_rng(seed), seed + SEEDS + int(budget)  # past early_stop's
    size = largest_order(purse.left - 2 * PAIRS)
    best = sorted(candidates, key=candidates.__getitem__)[: max(0, size - 1 - EMPTY)]
    if best:
        block = design(best, rng, size)
        yield from run_block(purse, block, next_seed, 1.0, evidence)
    return (yield from _finish(purse, evidence, next_seed + SEEDS))


def _finish(purse: Purse, evidence: Evidence, fresh_seed: int) -> Plan:
    """Keeps what the evidence allows, and claims what fresh seeds say."""
    kept, means = evidence.choose()
    pairs = min(PAIRS, int(purse.left / 2))
    kept = kept if pairs and purse.affords([Trial(kept, fresh_seed)]) else frozenset()
    notes = {"sigma": evidence.sigma}
    return (yield from confirm(purse, kept, fresh_seed, pairs, means, notes))
