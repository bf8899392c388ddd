# SPDX-License-Identifier: Apache-2.0
"""The luck of an arm of several ideas, of which each was only run alone.

On a seed, the loss of a set of ideas A is the baseline's, plus effects, plus luck Z(A) - Z({}), where Z is
normal with the covariance

    Cov(Z(A), Z(B)) = V prod over i in A xor B of rho_i,

so two arms have the less luck in common the more ideas tell them apart, and none has more than so much.
rho_i follows from the spread of idea i's own luck, 2 V (1 - rho_i).  V, in mean spreads, is fitted to arms
that were trained (scripts/idea_combinations.py).  Luck is drawn given that of every idea alone, which is
known: a conditional draw of a normal field, or kriging (Journel 1974), here in closed form, for the
covariance of the ideas' luck is D + V u u^T with u = 1 - rho.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jaxlm.research.simulate import mix
from jaxlm.research.stats.shrink import Floats

SPREAD = 1.25  # V over the mean spread of an idea's luck
FRESH = 1.35  # what its ideas' luck does not foretell, over the field's: of all arms 1.7, of harmless ideas 1.2
PARTS = 8  # of a draw: each in its own way blind to some of the ideas
_LEAST = 1e-6  # of u, for ideas that change nothing


class Luck:
    """losses: of runs, (idea, seed, fraction of training), the baseline first, nan where one failed."""

    def __init__(self, losses: Floats) -> None:
        own = losses - losses.mean(axis=1, keepdims=True)
        self.alone = np.nan_to_num(own[1:] - own[0])
        spread = self.alone[:, :, -1].var(axis=1, ddof=1)
        mean = spread[spread > 0].mean() if spread.any() else 1.0
        self.variance = SPREAD * float(mean)
        self.u = np.clip(spread / (2 * self.variance), _LEAST, 1.0)
        self.diagonal = self.variance * self.u * (2 - self.u)
        ends = np.sqrt(np.where(spread > 0, spread, np.inf))
        self._drawn_alone = functools.lru_cache(maxsize=256)(self._draw_alone)
        # curves by fraction, whose ends have mean 0 and spread 1
        self.shapes = (self.alone / ends[:, None, None])[spread > 0].reshape(-1, losses.shape[-1])

    def of(self, ideas: Sequence[int], seed: int, key: int) -> Floats:
        """By fraction.  ideas: from 0, without the baseline; seed: the table's; key: what else is drawn."""
        weights, _ = self.foretold(ideas)
        known = np.tensordot(weights, self.alone[:, seed], 1)
        if len(ideas) < 2 or not self.shapes.size:
            return known
        nothing, alone = self._drawn_alone(key)
        drawn = self._draw(frozenset(ideas), key) - nothing
        return known + FRESH * (drawn - np.tensordot(weights, alone, 1))

    def foretold(self, ideas: Sequence[int]) -> tuple[Floats, float]:
        """(Weights of each idea's own luck in what is to be expected of all together, the variance left)."""
        inside, u = sorted(set(ideas)), self.u
        rho, apart = 1 - u, 1 - (1 - u)[inside].prod()
        covariance = apart * u
        for i in inside:
            covariance[i] = u[i] * (1 + rho[[j for j in inside if j != i]].prod())
        covariance *= self.variance
        scaled, direction = covariance / self.diagonal, u / self.diagonal
        share = self.variance * (u @ scaled) / (1 + self.variance * (u @ direction))
        weights = scaled - share * direction
        return weights, float(2 * self.variance * apart - weights @ covariance)

    def _draw(self, ideas: frozenset[int], key: int) -> Floats:
        """Z(ideas) without regard to what is known: a part is another one if an idea that it sees is."""
        found = np.zeros(self.alone.shape[-1])
        for part in range(PARTS):
            of_part = mix(key ^ mix(part + 1))
            seen = of_part
            for i in sorted(ideas):
                if mix(of_part ^ (i + 1)) < self.u[i] * 2**64:
                    seen = mix(seen ^ (i + 1))
            found += self.shapes[seen % len(self.shapes)]
        return found * np.sqrt(self.variance / PARTS)

    def _draw_alone(self, key: int) -> tuple[Floats, Floats]:
        """(Z({}), Z({i}) - Z({}) of every idea)."""
        nothing = self._draw(frozenset(), key)
        each = [self._draw(frozenset({i}), key) - nothing for i in range(len(self.u))]
        return nothing, np.array(each)
