# SPDX-License-Identifier: Apache-2.0
"""Charts are well-formed, put the data where the axes say, and bear anything."""

import itertools
import math
import random
import re
import xml.etree.ElementTree as ET

import pytest

from jaxlm.telemetry.svg import PLOT_H, PLOT_W, Series, line_chart, log_ticks, nice_ticks

LABELS = {"title": "Loss", "x_label": "update", "y_label": "nats"}


def _chart(*points, **options):
    return ET.fromstring(line_chart([Series("a", points)], **LABELS | options))


def _pixels(figure):
    """Where the renderer puts the points of the first path, inside the plot."""
    moved = figure.find(".//g[@transform][path]")
    a, _, _, d, e, f = map(float, re.findall(r"[-+.e\d]+", moved.get("transform").split("(")[1]))
    pairs = re.findall(r"[ML](\S+) ([^MLh]+)", moved.find("path").get("d"))
    return [(a * float(x) + e, d * float(y) + f) for x, y in pairs]


def _tick_labels(figure, style):
    """(text, coordinate) of the axis labels."""
    at = "x" if style == "middle" else "y"
    return [(t.text, float(t.get(at))) for t in figure.iter("text") if t.get("class") == style]


def test_ticks_are_even_round_and_inside():
    rng = random.Random(0)
    for _ in range(2000):
        low = rng.uniform(-1, 1) * 10 ** rng.uniform(-6, 6)
        high = low + abs(low) * 10 ** rng.uniform(-4, 6)
        ticks = nice_ticks(low, high)
        slack = 1e-6 * (high - low)
        assert 2 <= len(ticks) <= 6 and low - slack <= ticks[0] and ticks[-1] <= high + slack
        step = ticks[1] - ticks[0]
        assert all(b - a == pytest.approx(step, rel=1e-6) for a, b in itertools.pairwise(ticks))
        mantissa = f"{step:.2e}".partition("e")[0]
        assert mantissa in ("1.00", "2.00", "2.50", "5.00")


def test_log_ticks_are_few_inside_and_rising():
    rng = random.Random(0)
    for _ in range(2000):
        low = rng.uniform(-12, 12)
        high = low + 10 ** rng.uniform(-3, 1.3)
        ticks = log_ticks(low, high)
        assert ticks == sorted(set(ticks)) and 2 <= len(ticks) <= 10
        assert low - 1e-6 <= ticks[0] and ticks[-1] <= high + 1e-6


@pytest.mark.parametrize("is_log", [False, True])
def test_a_point_lies_where_the_axes_say(is_log):
    """The labels of two ticks, taken as a scale, must give the data back."""
    points = [(0, 8.0), (500, 4.0), (900, 3.0), (1000, 2.5)]
    figure = _chart(*points, is_log=is_log)
    scale = math.log10 if is_log else float
    (x_text, x_at), (x_text2, x_at2) = _tick_labels(figure, "middle")[:2]
    y_ticks = [(text, at - 4) for text, at in _tick_labels(figure, "end") if at <= PLOT_H + 4]
    (y_text, y_at), (y_text2, y_at2) = y_ticks[0], y_ticks[-1]
    per_x = (x_at2 - x_at) / (float(x_text2) - float(x_text))
    per_y = (y_at2 - y_at) / (scale(float(y_text2)) - scale(float(y_text)))
    for (x, y), (px, py) in zip(points, _pixels(figure), strict=True):
        assert px == pytest.approx(x_at + per_x * (x - float(x_text)), abs=0.2)
        assert py == pytest.approx(y_at + per_y * (scale(y) - scale(float(y_text))), abs=0.2)


@pytest.mark.parametrize("is_log", [False, True])
def test_what_cannot_be_drawn_breaks_the_line(is_log):
    figure = _chart((1, 2.0), (2, math.nan), (3, 3.0), (4, math.inf), (5, 4.0), is_log=is_log)
    path = figure.find(".//path").get("d")
    assert (path.count("M"), path.count("L")) == (3, 0)
    assert "nan" not in path and "inf" not in path


def test_a_log_scale_leaves_out_what_is_not_positive():
    figure = _chart((1, 0.0), (2, 10.0), (3, -1.0), (4, 100.0), is_log=True)
    assert figure.find(".//path").get("d") == "M2 1M4 2"


@pytest.mark.parametrize("points", [[], [(1, math.nan)], [(1, math.inf), (2, -math.inf)]])
def test_a_chart_without_data_says_so(points):
    figure = _chart(*points, levels=[("xz", 1.5)])
    assert figure.find(".//svg") is None and "no data yet" in "".join(figure.itertext())


@pytest.mark.parametrize(
    "ys", [[5.0], [0.0], [2.0, 2.0], [1e-99, 1e99], [2.0, -1e308], [1e9, 1e9 + 1e-3]]
)
@pytest.mark.parametrize("options", [{}, {"is_log": True}, {"from_zero": True}], ids=str)
def test_degenerate_ranges_give_finite_coordinates(ys, options):
    figure = _chart(*enumerate(ys), levels=[("xz", ys[0])], **options)
    for element in figure.iter():
        for name, value in element.items():
            assert not re.search(r"\b(nan|inf)\b", value), (element.tag, name, value)


def test_one_spike_does_not_flatten_the_rest_and_levels_are_always_in_view():
    points = [(i, 3.0 + 0.1 * (i % 7)) for i in range(1000)]
    points[500] = (500, 1e6)
    figure = _chart(*points, levels=[("gzip", 6.0)])
    usual = [y for x, y in _pixels(figure) if x != _pixels(figure)[500][0]]
    assert min(usual) >= 0 and max(usual) <= PLOT_H and max(usual) - min(usual) > PLOT_H / 10
    (label,) = [t for t in figure.iter("text") if t.text.startswith("gzip")]
    assert 0 <= float(label.get("y")) <= PLOT_H


def test_all_points_lie_inside_the_plot():
    rng = random.Random(0)
    points = [(i, rng.uniform(-5, 5)) for i in range(3, 150)]
    for x, y in _pixels(_chart(*points)):
        assert -1e-6 <= x <= PLOT_W + 1e-6 and 0 <= y <= PLOT_H


def test_several_series_have_a_legend_and_hostile_names_stay_text():
    evil = '"><script>alert(1)</script>&\ufffd'  # what a control character becomes
    series = [Series(evil, [(1, 2.0), (2, 3.0)]), Series("b", [(1, 1.0)], 1)]
    series.append(Series("noise", [(1, 1.0)], 1, is_faint=True))
    text = line_chart(
        series, title=evil.replace("\ufffd", "\x1b"), x_label=evil, y_label=evil, marks=[(1, evil)]
    )
    figure = ET.fromstring(text)
    assert "<script" not in text and figure.find(".//svg/title").text == evil
    assert [item.find("span").text for item in figure.iter("li")] == [evil, "b"]
    assert [p.get("data-name") for p in figure.iter("path")] == [evil, "b", "noise"]


def test_the_description_tells_the_curve_to_who_cannot_see_it():
    figure = _chart((1, 5.0), (50, 1.25), (100, 2.0), description="cross-entropy")
    text = figure.find(".//desc").text
    assert text == "cross-entropy a: first 5 at 1, last 2 at 100, lowest 1.25 at 50."
