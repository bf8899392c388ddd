# SPDX-License-Identifier: Apache-2.0
"""A report's numbers stand in the records that it cites; false ones do not pass."""

import re
from pathlib import Path

import pytest

from jaxlm.research.desk import lint, person, report
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.running import run_draft
from jaxlm.research.runner import Means
from tests.jaxlm.research.desk.workshop import begun, yes
from tests.jaxlm.research.fake import FakeWorkers


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A project after one round of the loop."""
    FakeWorkers({("b1", 0.8): -0.1}).install(monkeypatch)
    desk = begun(tmp_path, overrides=("TrainConfig.num_steps = 60",), max_flops=1e13)
    good = desk.propose("good <b>", {"OptimConfig.b1": "0.8"}, "why", -0.08, -0.2, 0.1).id
    null = desk.propose("null", {"OptimConfig.b2": "0.99"}, "why", 0.5, 0.4, 0.6).id
    draft = desk.draft([good, null], "one helps", smallest_effect=0.02).id
    person.approve(desk, draft[:8], yes)
    run_draft(desk, draft, Means(project=desk.project, progress=lambda *news: None))
    person.adopt(desk, draft[:8], "good <b>", yes)
    return desk


def test_it_tells_the_round_and_every_number_is_backed(desk: Desk) -> None:
    paths = report.write_report(desk, desk.project)
    text, html = (path.read_text() for path in paths)
    for words in (
        "state: adopted", "screen: good <b>: keep", "null: discard", "confirmation: good <b>: keep",
        "adopted: good <b>", "came out at -0.", ": within", ": outside", "runs: at most",
    ):  # fmt: skip
        assert words in text
    assert lint.unbacked(text, bodies(desk)) == []
    assert "good &lt;b&gt;" in html and "good <b>" not in html
    assert (
        html.count("<figure") == 2 * 3
    )  # of screen and confirmation: effects, two charts of curves
    assert re.findall("<h3>(.*?)</h3>", html) == ["Screen", "Confirmation"]
    assert not re.search(r'(src|href)="(?!#)', html)  # self-contained


def test_runs_that_cannot_be_read_leave_the_numbers(desk: Desk) -> None:
    for path in (desk.project / "runs").glob("*/telemetry.jsonl"):
        path.write_text("damaged\n")
    text, html = (path.read_text() for path in report.write_report(desk, desk.project))
    assert "screen: good <b>: keep" in text
    assert html.count("cannot be drawn") == 2


def bodies(desk: Desk) -> dict:
    return {r.seq: r.body for r in desk.records()}


def test_twenty_false_claims_are_found(desk: Desk) -> None:
    """Each number of the report, moved by its last digit or more, and lines that cite nothing."""
    text = report.as_markdown(report.sections(desk))
    records = bodies(desk)
    places = list(re.finditer(r"[-+]\d\.\d{4}", text))
    forged = [
        text[: m.start()] + f"{float(m[0]) + off:+.4f}" + text[m.end() :]
        for m in places
        for off in (0.0137, -0.2111)
    ]
    assert len(forged) >= 20
    assert all(lint.unbacked(f, records) for f in forged)
    uncited = [
        "- the loss fell by 12%", "- 3 ideas out of 4 helped", "- keep: -0.0421 [999]",
        "- bits per byte 1.7 [0]", "- 1e30 FLOPs [0]",
    ]  # fmt: skip
    assert all(lint.unbacked(line, records) for line in uncited)


@pytest.mark.parametrize(
    ("line", "is_backed"),
    [
        ("gain 0.12 [0]", True), ("gain 12% [0]", True), ("gain 0.13 [0]", False),
        ("gain 0.1234 [0]", True), ("gain 0.123 [0]", True), ("gain 0.1235 [0]", False),
        ("3 arms [0]", True), ("4 arms [0]", False), ("total 7 [0, 1]", True), ("total 7 [0]", False),
        ("lr 2e-3 [1]", True), ("lr 3e-3 [1]", False), ("v `12ab` and b1", True), ("1,000 x [1]", True),
    ],
)  # fmt: skip
def test_what_backs_a_number(line: str, is_backed: bool) -> None:
    records = {
        0: {"x": 0.1234, "arms": ["a", "b", "c"], "cost": 5},
        1: {"cost": 2, "set": "lr = 2e-3", "n": 1000},
    }
    assert (lint.unbacked(line, records) == []) == is_backed
