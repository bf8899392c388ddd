# SPDX-License-Identifier: Apache-2.0
"""What is shown of a number can be read back; foreign text cannot steer a terminal."""

import math
import random
import sys
import unicodedata

import pytest

from jaxlm.telemetry.readable import aligned, duration, fixed, number, percent, printable

SCALE = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def _read_back(text):
    text = text.replace(",", "")
    return float(text[:-1]) * SCALE[text[-1]] if text[-1] in SCALE else float(text)


@pytest.mark.parametrize("digits", [3, 4, 6])
def test_a_number_reads_back_to_its_digits(digits):
    rng = random.Random(0)
    values = [s * 10 ** rng.uniform(-12, 18) for s in (1, -1) for _ in range(2000)]
    values += [v * 10**k for v in (1, 9.996, 9.9996) for k in range(-9, 16)]
    for value in values:
        assert _read_back(number(value, digits)) == pytest.approx(
            value, rel=0.5 * 10 ** (1 - digits)
        )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.000312, "3.12e-4"), (0.25, "0.25"), (9.996, "10"), (999.96, "1,000"),
        (1234, "1,234"), (11_812.4, "11.8k"), (2_620_416, "2.62M"), (1e16, "1e16"),
        (-3e-4, "-3e-4"), (None, "-"), (math.nan, "nan"), (math.inf, "inf"),
    ],
)  # fmt: skip
def test_numbers_look_as_people_write_them(value, text):
    assert number(value) == text


def test_numbers_of_one_axis_share_a_suffix():
    assert [number(v, 6, like=12_500) for v in (0, 5_000, 12_500)] == ["0", "5k", "12.5k"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"), (4.24, "4.2s"), (9.96, "10s"), (59.7, "1m00s"), (142, "2m22s"),
        (3599.6, "1h00m"), (7_380, "2h03m"), (273_600, "3d04h"), (math.inf, "?"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_absent_numbers_are_a_dash():
    assert (fixed(None), percent(None)) == ("-", "-")
    assert (fixed(1.4487), percent(0.4321)) == ("1.449", "43.2%")


def test_no_character_of_unicode_gets_through_as_a_control():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    clean = printable(everything)
    assert {c for c in clean if unicodedata.category(c)[0] == "C"} == {"\n"}
    clean.encode()  # no lone surrogates
    kept = [c for c in everything if unicodedata.category(c)[0] != "C"]
    assert [c for c in clean if c not in "\n\ufffd "] == [c for c in kept if c not in "\ufffd "]


def test_layout_of_foreign_text_stays():
    assert printable("a\r\n\tb\x1b[31m") == "a\n    b\ufffd[31m"


def test_columns_of_a_table_begin_one_below_the_other():
    rows = [("name", "tokens"), ("a", "1"), ("longer", "")]
    assert list(aligned(rows)) == ["name    tokens", "a       1", "longer"]
    assert list(aligned([])) == []
