# SPDX-License-Identifier: Apache-2.0
"""Effects shrunken towards what ideas usually do, and the probability that one is good.

The estimate that was selected is too good on average (winner's curse).  Under the prior
    e ~ p_null . 0 + p_good . -Exp(mean_effect) + p_bad . +Exp(mean_harm),   x | e ~ N(e, se^2),
the posterior is a mixture of a point and two truncated normals, so its weights and means have closed
forms.  An expectation over it is not inflated by selection, if the prior is about right: hence
`fit_prior`, empirical Bayes by EM with the ideas themselves (Efron, Large-Scale Inference, 2010).
All functions are vectorised over ideas.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr

Floats = NDArray[np.float64]
SCALE_WEIGHT = 2.0


@dataclasses.dataclass(frozen=True)
class Prior:
    """What an idea does to the loss: good, nothing or bad; sizes are exponential, in nats.

    The default is fitted to 125 public experiments of one night (karpathy/autoresearch, mar8).
    """

    p_good: float = 0.15
    p_null: float = 0.35
    p_bad: float = 0.50
    mean_effect: float = 1.5e-3  # of the good ones
    mean_harm: float | None = None  # of the bad ones; None: the same

    def __post_init__(self) -> None:
        shares = (self.p_good, self.p_null, self.p_bad)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"prior's shares must be >= 0 and sum to 1, got {shares}")
        if not self.mean_effect > 0:
            raise ValueError(f"prior's mean_effect must be > 0, got {self.mean_effect!r}")
        if not self.harm > 0:
            raise ValueError(f"prior's mean_harm must be > 0, got {self.mean_harm!r}")

    @property
    def harm(self) -> float:
        """Mean size of the bad ideas' effects."""
        return self.mean_effect if self.mean_harm is None else self.mean_harm

    @property
    def good_of_active(self) -> float:
        """Share of good ideas among those that do something."""
        return self.p_good / max(self.p_good + self.p_bad, 1e-300)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """Per idea."""

    p_good: Floats
    p_null: Floats
    mean: Floats  # of the effect: the shrunken estimate
    upside: Floats  # mean of max(0, -effect)
    log_evidence: float  # of all estimates under the prior


def posterior(estimate: ArrayLike, se: ArrayLike, prior: Prior) -> Posterior:
    """Of each effect, given its unbiased estimate and standard error."""
    x, s = np.broadcast_arrays(np.asarray(estimate, float), np.asarray(se, float))
    if np.any(~np.isfinite(x)) or np.any(~(s > 0)):
        raise ValueError("estimates must be finite and standard errors positive")
    log_null = -0.5 * (x / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)
    log_good, size_good = _slab(-x, s, prior.mean_effect)
    log_bad, size_bad = _slab(x, s, prior.harm)
    with np.errstate(divide="ignore"):
        shares = np.log([prior.p_good, prior.p_null, prior.p_bad])
    logs = np.stack([log_good, log_null, log_bad]) + shares.reshape(3, *[1] * x.ndim)
    total = np.logaddexp.reduce(logs)
    good, null, bad = np.exp(logs - total)
    upside = good * size_good
    return Posterior(good, null, bad * size_bad - upside, upside, float(total.sum()))


def _slab(x: Floats, s: Floats, mean_effect: float) -> tuple[Floats, Floats]:
    """Of size u ~ Exp(mean_effect) seen as x ~ N(u, s^2): (log density of x, mean of u given x)."""
    centre = x - s * s / mean_effect  # u | x is N(centre, s^2) cut off at 0
    log_tail = log_ndtr(centre / s)
    log_density = -np.log(mean_effect) + (s / mean_effect) ** 2 / 2 - x / mean_effect + log_tail
    hazard = np.exp(-0.5 * (centre / s) ** 2 - 0.5 * np.log(2 * np.pi) - log_tail)
    return log_density, centre + s * hazard


def fit_prior(
    estimate: ArrayLike, se: ArrayLike, anchor: Prior, *, weight: float = 10.0,
    start: Prior | None = None, steps: int = 10,
) -> Prior:  # fmt: skip
    """The prior that the ideas' own estimates suggest; `anchor` counts like `weight` ideas.

    The shares of good and bad ideas are much the same from one model to the next, the size of effects
    is not: there the anchor counts only for `SCALE_WEIGHT`.  Good and bad ideas have sizes of their own:
    a tuned model has little to gain, and as much to lose as any.

    EM: shares and sizes from the posterior under the last prior, from `start` on (the anchor).
    """
    x, s = np.atleast_1d(np.asarray(estimate, float)), np.asarray(se, float)
    shares = np.array([anchor.p_good, anchor.p_null, anchor.p_bad])
    sizes = np.array([anchor.mean_effect, anchor.harm])
    active = SCALE_WEIGHT * shares[[0, 2]]
    prior = start or anchor
    for _ in range(steps):
        good, null, gain, harm = _expected(x, s, prior)
        counts = weight * shares + [good.sum(), null.sum(), (1 - good - null).sum()]
        p_good, p_null, _ = counts / counts.sum()
        seen, total = [good.sum(), (1 - good - null).sum()], [gain.sum(), harm.sum()]
        mean, mean_harm = (active * sizes + total) / (active + seen)
        bad = float(1 - p_good - p_null)
        prior = Prior(float(p_good), float(p_null), bad, float(mean), float(mean_harm))
    return prior


def _expected(x: Floats, s: Floats, prior: Prior) -> tuple[Floats, Floats, Floats, Floats]:
    """(P(good), P(null), mean of max(0, -e), mean of max(0, e)) of each idea."""
    post = posterior(x, s, prior)
    return post.p_good, post.p_null, post.upside, post.mean + post.upside


def keep_set(
    post: Posterior, false_discovery: float, may: NDArray[np.bool_] | None = None,
    *, null_helps: float = 0.0,
) -> NDArray[np.bool_]:  # fmt: skip
    """The most ideas whose expected share of not-good ones is at most `false_discovery`.

    Only those with a shrunken effect below zero, and which `may` be kept.  null_helps: the chance that
    an idea taken for one that does nothing helps after all; 0 where it truly does nothing.
    """
    p_wrong = 1 - post.p_good - null_helps * post.p_null
    wrong = np.where((post.mean < 0) & (True if may is None else may), p_wrong, np.inf)
    order = np.argsort(wrong, kind="stable")
    mean_wrong = np.cumsum(wrong[order]) / np.arange(1, wrong.size + 1)
    keep = np.zeros(wrong.size, bool)
    keep[order[: int(np.sum(mean_wrong <= false_discovery))]] = True
    return keep
