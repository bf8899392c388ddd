# SPDX-License-Identifier: Apache-2.0
"""Tokenising over several processes keeps the order, and does not read everything first."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from jaxlm.data.documents import _ordered_map


def test_ordered_map_keeps_the_order_and_takes_few_items_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            taken.append(i)
            yield i

    with ThreadPoolExecutor(4) as pool:
        for done, result in enumerate(_ordered_map(pool, lambda i: i * i, items(), ahead=5)):
            assert result == done**2
            assert len(taken) <= done + 6
    assert taken == list(range(50))
    assert done == 49
