# SPDX-License-Identifier: Apache-2.0
"""What a campaign has learnt so far: per idea, of the noise, and of how early runs foretell late ones.

Full-length estimates are x_i ~ N(e_i, sigma^2 / info_i).  Effects shrink while training goes on, so
estimates at a fraction of it are taken in times LATE_SHARE.  They are then x_i ~ N(e_i, tau^2 +
sigma_early^2 / info_i): tau is how far an idea's early effect lies from its late one, and is measured
on ideas that have both.
"""

import dataclasses
import math
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxlm.research.policies.base import Knowledge, Losses, Purse, Trial
from jaxlm.research.policies.designs import Design, Effects, effects
from jaxlm.research.stats.noise import Noise, combine
from jaxlm.research.stats.shrink import (
    Floats,
    Posterior,
    Prior,
    fit_prior,
    keep_set,
    posterior,
)

SMOKE = 0.01  # of training: enough to see an arm start
RIDGE = 0.5  # sigma / spread of effects, for blocks with runs missing
LATE_SHARE = 0.7  # of an early effect that is left at the end, roughly (idea bank: 0.2 to 0.7)
EARLY_NOISE = 1.5 * LATE_SHARE  # of sigma, until measured (public log)
EARLY_SPREAD = 2 / 3  # tau / mean effect, until measured
TAU_DOUBT = 0.7  # sd of ln tau about that guess
BELIEF = 4.0  # degrees of freedom that a guess of the noise counts for
_TAU_GRID = np.exp(np.linspace(-2.0, 2.0, 13))

_Sums = dict[str, tuple[float, float]]  # idea -> (information, information x estimate)


@dataclasses.dataclass
class Evidence:
    """Grows with every block of runs; prior and tau are those fitted to all of it."""

    knowledge: Knowledge
    full: _Sums = dataclasses.field(default_factory=dict)
    early: _Sums = dataclasses.field(default_factory=dict)
    dead: set[str] = dataclasses.field(default_factory=set)
    full_noise: Noise | None = None
    early_noise: Noise | None = None

    def __post_init__(self) -> None:
        self.prior: Prior = self.knowledge.prior
        self.tau = EARLY_SPREAD * self.prior.mean_effect

    def add(self, ideas: Sequence[str], found: Effects, *, is_early: bool) -> None:
        """Takes in a block's estimates."""
        sums, share = (self.early, LATE_SHARE) if is_early else (self.full, 1.0)
        for idea, x, info in zip(ideas, found.estimate, found.information, strict=True):
            total, weighted = sums.get(idea, (0.0, 0.0))
            sums[idea] = (total + info, weighted + info * x * share)
        if found.noise_df:
            new = Noise(share * math.sqrt(found.noise_square_sum / found.noise_df), found.noise_df)
            if is_early:
                self.early_noise = combine([self.early_noise, new])
            else:
                self.full_noise = combine([self.full_noise, new])
        estimates = self._estimates(self.known, self.tau)
        self.prior = fit_prior(*estimates, self.knowledge.prior, start=self.prior)
        self.tau = self._fit_tau()

    @property
    def known(self) -> list[str]:
        """Ideas with any estimate."""
        return sorted((self.full.keys() | self.early.keys()) - self.dead)

    @property
    def sigma(self) -> float:
        """Of full runs.  Blocks share a seed, so their own noise may be below the ledger's."""
        parts = [
            self.full_noise,
            _belief(self.knowledge.noise),
            _belief(self.early_noise, 1 / EARLY_NOISE),
        ]
        noise = combine(parts)
        return noise.sigma if noise else self.knowledge.prior.mean_effect

    @property
    def sigma_early(self) -> float:
        """Of early runs, times LATE_SHARE as their effects."""
        known = combine([self.full_noise, _belief(self.knowledge.noise)])
        noise = combine([self.early_noise, _belief(known, EARLY_NOISE)])
        return noise.sigma if noise else EARLY_NOISE * self.knowledge.prior.mean_effect

    def judge(self, ideas: Sequence[str]) -> Posterior:
        """What is believed of ideas that are known."""
        return posterior(*self._estimates(ideas, self.tau), self.prior)

    def choose(
        self, may: NDArray[np.bool_] | None = None
    ) -> tuple[frozenset[str], dict[str, float]]:
        """(ideas to keep at the wanted false-discovery rate, shrunken effects of all that are known).

        may: which of `known` may be kept; all where None.
        """
        if not self.known:
            return frozenset(), {}
        post = self.judge(self.known)
        keep = keep_set(
            post, self.knowledge.false_discovery, may, null_helps=self.prior.good_of_active
        )
        kept = frozenset(i for i, is_kept in zip(self.known, keep, strict=True) if is_kept)
        return kept, {i: float(m) for i, m in zip(self.known, post.mean, strict=True)}

    def _fit_tau(self) -> float:
        """Most probable given all estimates, so also given which ideas were run on."""
        guess = EARLY_SPREAD * self.prior.mean_effect
        if not self.early:
            return guess
        both = [i for i in self.early if i in self.full]
        gap = np.array([_mean(self.early[i]) - _mean(self.full[i]) for i in both])
        noise = np.array(
            [self.sigma_early**2 / self.early[i][0] + self.sigma**2 / self.full[i][0] for i in both]
        )
        scores = []
        for tau in guess * _TAU_GRID:
            variance = noise + tau**2
            score = -0.5 * float(np.sum(gap**2 / variance + np.log(variance)))
            score += posterior(*self._estimates(self.known, tau), self.prior).log_evidence
            scores.append(score - 0.5 * (math.log(tau / guess) / TAU_DOUBT) ** 2)
        return float(guess * _TAU_GRID[int(np.argmax(scores))])

    def _estimates(self, ideas: Sequence[str], tau: float) -> tuple[Floats, Floats]:
        """(estimate, standard error), both lengths taken together by their precisions."""
        info_e, total_e = np.array([self.early.get(i, (0.0, 0.0)) for i in ideas]).T
        info_f, total_f = np.array([self.full.get(i, (0.0, 0.0)) for i in ideas]).T
        weight = 1 / (tau**2 * info_e + self.sigma_early**2)  # precision per early information
        precision = info_e * weight + info_f / self.sigma**2
        return (total_e * weight + total_f / self.sigma**2) / precision, precision**-0.5


def _mean(sums: tuple[float, float]) -> float:
    return sums[1] / sums[0]


def _belief(noise: Noise | None, factor: float = 1.0) -> Noise | None:
    return Noise(noise.sigma * factor, min(noise.df, BELIEF)) if noise else None


def smoke_test(
    purse: Purse, ideas: Sequence[str], seed: int, evidence: Evidence
) -> Generator[list[Trial], Losses, list[str]]:
    """The ideas that start, each alone: one that crashes would take half a block with it."""
    trials = [Trial(frozenset({idea}), seed, SMOKE) for idea in ideas]
    purse.pay(trials)
    losses = yield trials
    evidence.dead |= {i for i, loss in zip(ideas, losses, strict=True) if loss is None}
    return [i for i in ideas if i not in evidence.dead]


def block_trials(
    block: Design,
    seed: int,
    fraction: float = 1.0,
    scale: int = 0,
    base: frozenset[str] = frozenset(),
) -> list[Trial]:
    """A design's runs on one seed, so that what the seed adds to all of them cancels.

    An arm that comes again, as happens with few ideas, takes the next seed: on the same one it would
    be the same run, and tell nothing.  A block uses at most as many seeds as it has runs.
    """
    copies: dict[frozenset[str], int] = {}
    trials = []
    for arm in block.arms:
        copies[arm] = copies.get(arm, -1) + 1
        trials.append(Trial(arm | base, seed + copies[arm], fraction, scale))
    return trials


def run_block(
    purse: Purse, block: Design, seed: int, fraction: float, evidence: Evidence,
    base: frozenset[str] = frozenset(),
) -> Generator[list[Trial], Losses, None]:  # fmt: skip
    """All arms of a design, on top of `base`."""
    trials = block_trials(block, seed, fraction, base=base)
    purse.pay(trials)
    found = effects(block, (yield trials), RIDGE)
    evidence.add(block.ideas, found, is_early=fraction < 1)
