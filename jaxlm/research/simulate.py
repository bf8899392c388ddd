# SPDX-License-Identifier: Apache-2.0
"""Worlds in which policies can be judged, because the truth is known.

A world has ideas with effects on the loss, and noise:

    loss(arm, seed, f) = L(f) + sum_i e_i + 1/2 sum_ij c_ij + early(arm, f) + noise(arm, seed, f)

- Effects e: good, null or bad by the shares of `Prior`, exponential in size.  The default is fitted
  to one public night of 125 experiments (karpathy/autoresearch, mar8), and reproduces its keeps.
- Interactions c_ij ~ N(0, s^2 |e_i e_j| / 10): in an arm of ten ideas each effect spreads by the
  share s.
- Early signal: at fraction f of training every idea's effect is off by N(0, (early_sd g)^2) and the
  noise is (1 + g/2) sigma, correlated 1 - g/2 with the final one; g = ln f / ln 0.3, so 1 at 30 %.
- Noise: of a seed's two arms correlated by rho (common random numbers), N(0, sigma^2) in all; a
  function of world, arm and seed, so that a run repeated is the same run.
- Scale 1: effects shrink to `transfer` of theirs, and a share `flips` of the working ideas turns.

The same arm always has the same truth; nothing depends on the order of calls.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.special import ndtri

from jaxlm.research.policies.base import Losses, Trial
from jaxlm.research.stats.shrink import Prior

_MASK = (1 << 64) - 1
BASE_LOSS = 1.0


@dataclasses.dataclass(frozen=True)
class WorldSpec:
    """The world's statistics; sizes in nats."""

    sigma: float = 5e-4
    prior: Prior = dataclasses.field(default_factory=Prior)
    early_sd: float = 1e-3  # at 30 % of training
    interaction: float = 0.0
    rho: float = 0.0
    flips: float = 0.0
    transfer: float = 0.8
    p_crash: float = 0.008  # 1 of 126 in the log
    num_ideas: int = 600


WORLDS = {
    "calibrated": WorldSpec(),
    "few good": WorldSpec(prior=Prior(0.05, 0.45, 0.50)),
    "misleading start": WorldSpec(early_sd=3e-3),
    "small effects": WorldSpec(prior=Prior(mean_effect=6e-4)),
    "interactions": WorldSpec(interaction=0.3),
    "paired": WorldSpec(rho=0.6),
    "forty ideas": WorldSpec(num_ideas=40),
}
SIGMAS = (5e-4, 1.3e-3, 1.9e-3)


class World(Protocol):
    """What a policy can be tried in: ideas that can be run, and a truth to score it by."""

    @property
    def ideas(self) -> tuple[str, ...]: ...
    def run(self, trials: Sequence[Trial]) -> Losses: ...
    def truth(self, arm: frozenset[str], scale: int = 0) -> float: ...


def marginal(world: World, idea: str, arm: frozenset[str], scale: int = 0) -> float:
    """What the idea truly adds to the rest of the arm that has it."""
    return world.truth(arm, scale) - world.truth(arm - {idea}, scale)


class SimulatedWorld:
    """One draw of a spec.  Ideas come in the order in which somebody had them."""

    def __init__(self, spec: WorldSpec, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.spec, count = spec, spec.num_ideas
        self.ideas = tuple(f"idea{i:03d}" for i in range(count))
        self._index = {idea: i for i, idea in enumerate(self.ideas)}
        prior = spec.prior
        sign = rng.choice([-1, 0, 1], count, p=[prior.p_good, prior.p_null, prior.p_bad])
        size = np.where(sign < 0, prior.mean_effect, prior.harm)
        small = sign * size * rng.exponential(size=count)
        turn = np.where(rng.random(count) < spec.flips, -1.0, 1.0)
        self.effects = np.stack([small, small * turn * spec.transfer])  # (scale, idea)
        self._early = spec.early_sd * rng.standard_normal(count)
        self._crashes = rng.random(count) < spec.p_crash
        self._pairs = _interactions(small, spec.interaction, rng) if spec.interaction else None
        self._keys = [int(k) for k in rng.integers(0, 1 << 63, count)]
        self._salt = int(rng.integers(0, 1 << 63))
        self._truth: dict[tuple[frozenset[str], int], float] = {}

    def run(self, trials: Sequence[Trial]) -> Losses:
        """None for an arm with an idea that crashes."""
        return [self._loss(t) for t in trials]

    def truth(self, arm: frozenset[str], scale: int = 0) -> float:
        """The arm's loss minus the baseline's, without noise."""
        if (arm, scale) not in self._truth:
            index = [self._index[idea] for idea in arm]
            total = float(self.effects[scale, index].sum())
            if self._pairs is not None:
                total += float(self._pairs[np.ix_(index, index)].sum()) / 2
            self._truth[arm, scale] = total
        return self._truth[arm, scale]

    def _loss(self, trial: Trial) -> float | None:
        index = [self._index[idea] for idea in trial.arm]
        if self._crashes[index].any():
            return None
        spec, early = self.spec, math.log(trial.fraction) / math.log(0.3)
        loss = BASE_LOSS + 0.15 * (trial.fraction**-0.5 - 1) + self.truth(trial.arm, trial.scale)
        loss += early * float(self._early[index].sum())
        own, common = self._normals(trial, index, early), self._normals(trial, None, early)
        noise = math.sqrt(1 - spec.rho) * own + math.sqrt(spec.rho) * common
        return loss + spec.sigma * (1 + early / 2) * noise

    def _normals(self, trial: Trial, index: list[int] | None, early: float) -> float:
        """Standard normal of an arm, or (None) of all arms on a seed; early ones mix in another."""
        key = self._salt ^ mix(
            2 * trial.seed + (1 << 32) * trial.scale + (1 << 40) * (index is None)
        )
        for i in index or ():
            key ^= self._keys[i]
        final = standard_normal(key)
        if early == 0:
            return final
        same = max(0.0, 1 - early / 2)
        return same * final + math.sqrt(1 - same * same) * standard_normal(key ^ 0x5DEECE66D)


def _interactions(effect: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    size = np.sqrt(np.abs(effect))
    upper = np.triu(rng.standard_normal((effect.size, effect.size)), 1)
    return share / math.sqrt(10) * np.outer(size, size) * (upper + upper.T)


def mix(key: int) -> int:
    """SplitMix64's output function: neighbouring keys give unrelated bits."""
    key = (key + 0x9E3779B97F4A7C15) & _MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    return key ^ (key >> 31)


def standard_normal(key: int) -> float:
    """A standard normal, as random as its key."""
    return float(ndtri(((mix(key) >> 11) + 0.5) / (1 << 53)))
