# SPDX-License-Identifier: Apache-2.0
"""Two-level designs: many ideas in each run, every idea in half of the runs, any two independently.

A Hadamard matrix H (entries +-1, H'H = m I) gives m runs for up to m - 1 ideas; idea j is in the
runs where column j is +1.  Its effect is the mean over these minus the mean over the others: with
noise sigma, se = 2 sigma / sqrt(m), where one run each against a known baseline has sigma and one
against one baseline run sqrt(2) sigma (Plackett & Burman 1946).  Columns without an idea measure the
noise, interactions included.  A foldover adds the mirrored runs: main effects come free of every
interaction of two.

Matrices: Paley's first and second construction for primes, doubled by Sylvester's.
Legend: M runs  K ideas
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_ORDER = 256


@functools.cache
def hadamard(order: int) -> NDArray[np.int64]:
    """An order x order Hadamard matrix, first column +1; raises ValueError for an order not known."""
    matrix = _construct(order)
    if matrix is None:
        raise ValueError(f"no Hadamard matrix of order {order}: see orders()")
    return np.asarray(matrix * matrix[:, :1])


@functools.cache
def orders() -> tuple[int, ...]:
    """The orders that `hadamard` knows."""
    return tuple(m for m in range(1, MAX_ORDER + 1) if _construct(m) is not None)


def largest_order(limit: float) -> int:
    """The largest order from 4 to `limit`, 0 where there is none."""
    return max([m for m in orders() if 4 <= m <= limit], default=0)


def num_empty(order: int) -> int:
    """Columns that a design of so many runs leaves without an idea, to measure the noise."""
    return 2 if order >= 16 else 1 if order >= 8 else 0


def room(order: int) -> int:
    """Ideas in a design of so many runs, beside its empty columns."""
    return order - 1 - num_empty(order)


def roomy_order(num_ideas: int) -> int:
    """The smallest order with room for so many ideas."""
    return next(m for m in orders() if m >= 4 and room(m) >= num_ideas)


def order_for(num_ideas: int, num_empty: int = 0) -> int:
    """The smallest order >= 4 with a column for each idea and `num_empty` more."""
    return next(m for m in orders() if m >= 4 and m - 1 >= num_ideas + num_empty)


def _construct(m: int) -> NDArray[np.int64] | None:
    if m in (1, 2):
        return np.array([[1, 1], [1, -1]])[:m, :m]
    if m % 4:
        return None
    if _is_prime(m - 1):  # Paley I: m - 1 = 3 mod 4
        skew = np.zeros((m, m), int)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(m - 1)
        return skew + np.eye(m, dtype=int)
    half = m // 2 - 1
    if half % 4 == 1 and _is_prime(half):  # Paley II
        core = np.zeros((half + 1, half + 1), int)
        core[0, 1:], core[1:, 0], core[1:, 1:] = 1, 1, _jacobsthal(half)
        return np.kron(core, [[1, 1], [1, -1]]) + np.kron(
            np.eye(half + 1, dtype=int), [[1, -1], [-1, -1]]
        )
    smaller = _construct(m // 2)
    return None if smaller is None else np.kron([[1, 1], [1, -1]], smaller)


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, math.isqrt(q) + 1))


def _jacobsthal(q: int) -> NDArray[np.int64]:
    """Q[i, j] = +1 where i - j is a square mod q, -1 where not, 0 on the diagonal."""
    character = np.full(q, -1)
    character[np.arange(1, q) ** 2 % q] = 1
    character[0] = 0
    return np.asarray(character[(np.arange(q)[:, None] - np.arange(q)) % q])


@dataclasses.dataclass(frozen=True)
class Design:
    """Signs of each idea, then of the empty columns, in each run."""

    ideas: tuple[str, ...]
    signs_MK: NDArray[np.int64]  # K: ideas, then empty columns

    @property
    def arms(self) -> list[frozenset[str]]:
        return [
            frozenset(idea for idea, sign in zip(self.ideas, row, strict=False) if sign > 0)
            for row in self.signs_MK
        ]


def design(
    ideas: Sequence[str], rng: np.random.Generator, order: int, *, foldover: bool = False
) -> Design:
    """Ideas on randomly drawn columns of a Hadamard matrix; all columns beyond them are empty ones.

    foldover: with the mirrored runs, so 2 `order` runs.
    Raises ValueError for more ideas than `order` - 1.
    """
    if len(ideas) > order - 1:
        raise ValueError(f"{len(ideas)} ideas need more than {order} runs")
    signs_MK = hadamard(order)[:, 1 + rng.permutation(order - 1)]
    # Row 1 of a normalised matrix has one sign throughout; flipped columns spread the ideas evenly.
    signs_MK = signs_MK * rng.choice([-1, 1], order - 1)
    if foldover:
        signs_MK = np.concatenate([signs_MK, -signs_MK])
    return Design(tuple(ideas), signs_MK)


@dataclasses.dataclass(frozen=True)
class Effects:
    """Estimates per idea, in nats, with the information 1 / se^2 at noise sigma = 1."""

    estimate: NDArray[np.float64]
    information: NDArray[np.float64]
    noise_square_sum: float  # of empty columns: df * sigma^2
    noise_df: int


def effects(plan: Design, losses: Sequence[float | None], ridge: float) -> Effects:
    """Least squares over the runs that completed.

    With every run there, the textbook contrasts.  Where some did not complete, columns are no longer
    orthogonal, perhaps not even independent; then the posterior under e ~ N(0, (sigma / ridge)^2)
    is solved, and given back as the independent observations that would have led to it.
    """
    num_ideas = len(plan.ideas)
    there = np.array([loss is not None for loss in losses])
    if there.all():
        contrast = 2 * plan.signs_MK.T @ np.array(losses, float) / len(losses)
        empty = contrast[num_ideas:]
        information = np.full(num_ideas, len(losses) / 4)
        return Effects(
            contrast[:num_ideas], information, float(empty @ empty) * len(losses) / 4, empty.size
        )
    x = plan.signs_MK[there, :num_ideas] / 2.0
    y = np.array([loss for loss in losses if loss is not None])
    if y.size < 2:
        return Effects(np.zeros(num_ideas), np.full(num_ideas, 1e-9), 0.0, 0)
    x = x - x.mean(axis=0)
    covariance = np.linalg.inv(x.T @ x + ridge**2 * np.eye(num_ideas))
    mean, variance = covariance @ (x.T @ (y - y.mean())), np.diag(covariance)
    information = np.maximum(1 / variance - ridge**2, 1e-9)
    return Effects(mean / variance / information, information, 0.0, 0)
