# SPDX-License-Identifier: Apache-2.0
"""Numbers, times and foreign text, in the form that a person may see.  Standard library only."""

import math
import unicodedata
from collections.abc import Iterable, Iterator
from html import escape

SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


def number(value: float | None, digits: int = 3, like: float | None = None) -> str:
    """At most `digits` significant digits: 0.000312 -> 3.12e-4, 1234 -> 1,234, 12345678 -> 12.3M.

    like: a value whose suffix to share, so that the ticks of one axis read 5k, 10k, not 5,000, 10k.
    """
    if value is None:
        return "-"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    size = abs(float(f"{like or value:.{digits}g}"))
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if max(scale, 1e4) <= size < 1e15:
            return f"{value / scale:.{digits}g}{suffix}"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:,.{max(digits, 4) if size >= 1e3 else digits}g}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def fixed(value: float | None) -> str:
    """Three decimals, as losses and bits per byte are compared; none as "-"."""
    return "-" if value is None else f"{value:.3f}"


def percent(fraction: float | None) -> str:
    """0.4321 -> 43.2%; none as "-"."""
    return "-" if fraction is None else f"{100 * fraction:.1f}%"


def duration(seconds: float) -> str:
    """Two units at most: 4.2s, 1m05s, 2h03m, 3d04h."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for unit, part in ("dh", "hm", "ms"):
        if whole >= SECONDS[unit]:
            rest = whole % SECONDS[unit] // SECONDS[part]
            return f"{whole // SECONDS[unit]}{unit}{rest:02d}{part}"
    return f"{whole}s"


def aligned(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a table, its columns as wide as their longest cell."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip()


def printable(text: str) -> str:
    """Foreign text that cannot steer a terminal: control and format characters become U+FFFD.

    Newlines stay; a tab is four spaces.
    """
    clean = text.replace("\r\n", "\n").replace("\t", "    ")
    is_safe = (c == "\n" or unicodedata.category(c)[0] != "C" for c in clean)
    return "".join(c if safe else UNPRINTABLE for c, safe in zip(clean, is_safe, strict=True))


def markup(text: str) -> str:
    """The printable form of foreign text, escaped for HTML and SVG, attributes included."""
    return escape(printable(text))
