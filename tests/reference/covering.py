# SPDX-License-Identifier: Apache-2.0
"""A few cases in the place of a product of features that is too large to run."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

Case = dict[str, Any]


def covering(strength: int, features: dict[str, list[Any]]) -> list[Case]:
    """Cases among which any `strength` features take every combination of their values.

    Greedy: each case covers what is still missing, the best of a few random ways to complete it.
    """
    draw = random.Random(0)
    missing = {
        tuple(zip(names, values, strict=True)): None  # a dict keeps the order, so runs are alike
        for names in itertools.combinations(features, strength)
        for values in itertools.product(*(features[name] for name in names))
    }
    cases = []
    while missing:
        first = dict(next(iter(missing)))
        tries = [
            {name: first.get(name, draw.choice(values)) for name, values in features.items()}
            for _ in range(30)
        ]
        best = max(tries, key=lambda case: sum(key in missing for key in _parts(case, strength)))
        cases.append(best)
        for key in _parts(best, strength):
            missing.pop(key, None)
    return cases


def _parts(case: Case, strength: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    return itertools.combinations(case.items(), strength)
