# SPDX-License-Identifier: Apache-2.0
"""The default: measure noise, effects and early signal first; then choose how to search.

1. Calibrate: screen one factorial block of ideas early.  Empty columns measure the noise, the ideas the
   size of effects.
2. Divide the rest of the budget by what was measured (planning.py): a true early signal favours many
   short runs; a misleading one, none; much noise, few ideas in large designs.
3. Screen new ideas in blocks.
4. Prune: promising ideas together in Hadamard designs on fresh seeds, again and again while the
   budget lasts, until each is settled.  Surely good ones are in all arms.  Keep as many as the
   false-discovery rate allows.
5. Confirm on fresh seeds: the only source of the claimed gain (confirm.py).

Assumes that most effects nearly add up; an idea that cannot be combined shows as a failing arm.
"""

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxlm.research.policies.base import Knowledge, Losses, Plan, Purse, Trial
from jaxlm.research.policies.confirm import confirm
from jaxlm.research.policies.designs import design, largest_order, room, roomy_order
from jaxlm.research.policies.evidence import Evidence, run_block, smoke_test
from jaxlm.research.policies.planning import SURE, Situation, divide, next_block

SETTLED = 0.02  # an idea this surely good, or this surely not, needs no more runs
ENOUGH = 3  # ideas seen at both lengths
PAIRS = ((100.0, 3), (30.0, 2), (0.0, 1))  # fresh seeds for the claim, by budget


class _Campaign:
    """Budget, evidence and what is yet to try."""

    def __init__(
        self, ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge
    ) -> None:
        self.purse = Purse(budget, knowledge.scale_costs)
        self.evidence = Evidence(knowledge)
        self.knowledge = knowledge
        self.todo = list(ideas)
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.pairs = next(pairs for least, pairs in PAIRS if budget >= least)
        self.block = knowledge.max_block

    @property
    def free(self) -> float:
        """Left for searching; the rest is for the confirmation."""
        return self.purse.left - 2 * self.pairs

    def fresh_seed(self) -> int:
        """The first of as many as a block may use."""
        self.seed += self.block
        return self.seed


def adaptive(ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge) -> Plan:
    """Needs a budget of about 12 runs; with less it keeps nothing."""
    state = _Campaign(ideas, budget, seed, knowledge)
    yield from _screen(state, knowledge.early_fraction, state.free / 2)
    notes = yield from _screen_more(state)
    while (yield from _prune(state, state.free)):
        pass
    kept, means = state.evidence.choose(_is_vetted(state))
    return (yield from confirm(state.purse, kept, state.fresh_seed(), state.pairs, means, notes))


def _screen(
    state: _Campaign, fraction: float, budget: float
) -> Generator[list[Trial], Losses, bool]:
    """One block of new ideas; False, and nothing run, where the budget reaches for none."""
    count, _ = next_block(budget, fraction, state.block, len(state.todo))
    if not count:
        return False
    batch, state.todo = state.todo[:count], state.todo[count:]
    seed = state.fresh_seed()
    alive = yield from smoke_test(state.purse, batch, seed, state.evidence)
    if alive:
        block = design(alive, state.rng, roomy_order(len(alive)))
        yield from run_block(state.purse, block, seed, fraction, state.evidence)
    return True


def _screen_more(state: _Campaign) -> Generator[list[Trial], Losses, dict[str, float]]:
    """New ideas, as many as the division of the budget says; returns what it was based on."""
    evidence, knowledge = state.evidence, state.knowledge
    now = Situation(
        prior=evidence.prior, sigma=evidence.sigma, sigma_early=evidence.sigma_early,
        tau=evidence.tau, early_fraction=knowledge.early_fraction, budget=max(state.free, 1.0),
        num_ideas=len(state.todo),
        num_waiting=len(evidence.early.keys() - evidence.full.keys()), block=state.block,
        false_discovery=knowledge.false_discovery,
    )  # fmt: skip
    chosen = divide(now)
    end = state.free * (1 - chosen.share)
    while (yield from _screen(state, chosen.fraction, state.free - end)):
        pass
    return {
        "sigma": now.sigma, "mean_effect": now.prior.mean_effect, "tau": now.tau,
        "fraction": chosen.fraction, "screen_share": chosen.share,
    }  # fmt: skip


def _is_vetted(state: _Campaign) -> NDArray[np.bool_]:
    """Seen at full length; or at an early one, once it is known what that is worth."""
    full, early = state.evidence.full, state.evidence.early
    is_full = np.array([idea in full for idea in state.evidence.known], bool)
    return is_full | (len(full.keys() & early.keys()) >= ENOUGH)


def _prune(state: _Campaign, budget: float) -> Generator[list[Trial], Losses, bool]:
    """One full-length design of the ideas that are worth more runs; False where there is none.

    Ideas settled as good stay in all arms, so that the others are judged beside them.
    """
    evidence = state.evidence
    size = largest_order(min(budget, state.free))
    known = evidence.known
    if not size or not known:
        return False
    post = evidence.judge(known)
    is_full = np.array([idea in evidence.full for idea in known])
    bar = np.where(is_full, 1 - SETTLED, SURE)
    is_sure = (post.p_good >= bar) & _is_vetted(state)
    is_open = (post.p_good > SETTLED) & ~is_sure
    best = [i for i in np.argsort(-post.upside, kind="stable") if is_open[i]][: room(size)]
    if not best:
        return False
    sure = frozenset(idea for idea, s in zip(known, is_sure, strict=True) if s)
    block = design([known[i] for i in best], state.rng, min(size, roomy_order(len(best))))
    yield from run_block(state.purse, block, state.fresh_seed(), 1.0, evidence, sure)
    return True
