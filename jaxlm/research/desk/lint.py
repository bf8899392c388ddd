# SPDX-License-Identifier: Apache-2.0
"""Whether every number of a report stands in the record that it cites.

A line of Markdown ends with the records it speaks of: `kept, -0.0421 bits per byte [17, 23]`.  Each
number in it must be a value of one of them, as rounded in print; their sum over the cited records;
how many of something one of them lists; or part of a text that one of them holds.
Standard library only.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_CITED = re.compile(r"\[(\d+(?:, \d+)*)\]\s*\|?\s*$")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])(%?)")
_CODE = re.compile(r"`[^`]*`")  # names and ids; their digits claim nothing


def unbacked(markdown: str, records: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """A line for every number without a record behind it; none for a report that holds.

    records: body by number in the ledger
    """
    found = []
    for at, line in enumerate(markdown.splitlines(), start=1):
        cited = _CITED.search(line)
        seqs = [int(seq) for seq in cited[1].split(",")] if cited else []
        text = _CODE.sub("", line[: cited.start()] if cited else line)
        unknown = [seq for seq in seqs if seq not in records]
        found += [f"line {at}: there is no record {seq}" for seq in unknown]
        bodies = [records[seq] for seq in seqs if seq in records]
        for match in _NUMBER.finditer(text):
            if not _is_backed(match[0].rstrip("%"), bool(match[1]), bodies):
                where = f"of {cited[0].strip()}" if cited else "and the line cites no record"
                found.append(f"line {at}: {match[0]} is no value {where}")
    return found


def _is_backed(text: str, is_percent: bool, bodies: list[Mapping[str, Any]]) -> bool:
    plain = text.replace(",", "")
    value = float(plain) / (100 if is_percent else 1)
    mantissa, _, exponent = plain.partition("e")
    decimals = len(mantissa.partition(".")[2])
    least = 10.0 ** (int(exponent or 0) - decimals) / (100 if is_percent else 1)
    near = lambda x: math.isfinite(x) and abs(x - value) <= 0.5001 * least
    named: dict[str, float] = {}
    for body in bodies:
        for name, leaf in _leaves(body):
            if isinstance(leaf, str):
                if re.search(rf"(?<![\d.]){re.escape(plain.lstrip('+'))}(?![\d.])", leaf):
                    return True
                continue
            if near(leaf):
                return True
            named[name] = named.get(name, 0.0) + leaf
    return any(near(total) for total in named.values())


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, float | str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        yield f"{name}#", float(len(value))
        for item in value:
            yield from _leaves(item, name)
    elif isinstance(value, str):
        yield name, value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
