# SPDX-License-Identifier: Apache-2.0
"""The dash in a real browser, over real runs: what it shows, what moves, and the button.

It takes the pictures of the docs, into docs/images where JAXLM_PICTURES=docs/images asks for that.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxlm.research.verify import verify
from tests.jaxlm.dash.browser import CHROMIUM, DRIVER, Browser, browser
from tests.jaxlm.dash.material import RUNS, build, desk_here, inside
from tests.jaxlm.dash.terminal import Dash, dash
from tests.jaxlm.dash.test_runs import begin, row, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
MOST_BYTES = 200_000  # of a picture
LINK = r"(http://\S+#\S+)"
LOSS = "[data-metric='train/loss_nats']"
CHOSEN = (
    "return [...document.querySelectorAll('#runs [aria-pressed=true]')].map(e => e.dataset.key)"
)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A copy of the material, without its data; its key is the one that signs."""
    ignored = shutil.ignore_patterns("checkpoints")
    shutil.copytree(build(), tmp_path / "m", ignore=ignored)
    for name in RUNS:  # the newest, so that they come first
        os.utime(tmp_path / "m" / "runs" / name / "config.json")
    with inside(tmp_path / "m"):
        yield tmp_path / "m"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Before any test changes its folder."""
    named = os.environ.get("JAXLM_PICTURES")
    return Path(named).resolve() if named else tmp_path_factory.mktemp("pictures")


def take(window: Browser, path: Path) -> None:
    size = window.picture(path).stat().st_size
    assert 10_000 < size < MOST_BYTES, f"{path.name}: {size} bytes"


@pytest.fixture
def opened(window: Browser, folder: Path) -> Iterator[Browser]:
    """By the terminal's link, the four runs of runs/ chosen."""
    with dash(folder) as started:
        link = started.shows(LINK)
        assert "#" not in started.printed  # the link is for the terminal alone
        window.resize(1600, 1240)
        window.open(link)
        window.wait(lambda: window.count("#runs li") >= 4)
        for key in window.run(CHOSEN):
            window.click(f"#runs li[data-key='{key}']")
        for name in RUNS:
            window.click(f"#runs li[data-key='0/{name}']")
        window.wait(lambda: window.count(".chart path.strong") >= 12)
        window.wait(lambda: window.count(".finding") == len(RUNS))
        yield window
    assert window.complaints() == []


def test_it_shows_runs_curves_findings_campaigns_and_what_waits(
    opened: Browser, pictures: Path
) -> None:
    assert opened.count("#legend li") == len(RUNS)
    assert opened.text("#live") == "live" and opened.text("#doors") == "buttons on"
    assert opened.count("[data-key='0/adamw-lr-0.3'].finding details") >= 1
    assert opened.count(".campaign .effect circle") >= 2 and "keep" in opened.text("#campaigns")
    assert opened.count("#waiting article") >= 1 and opened.count(".diff ins") >= 2
    opened.run("document.querySelector('#runs').scrollTop = 0; scrollTo(0, 0)")
    opened.point(f"{LOSS} .picture", 0.55, 0.5)
    opened.wait(lambda: opened.count(".tip:not([hidden]) li") == len(RUNS))
    assert "updates" in opened.text(".tip:not([hidden])")
    time.sleep(0.3)
    take(opened, pictures / "dash.png")


@pytest.mark.parametrize(("axis", "word"), [("time", "s"), ("flops", "G"), ("tokens", "k")])
def test_curves_lie_over_the_axis_that_one_asks_for(opened: Browser, axis: str, word: str) -> None:
    opened.run(f"document.querySelector('[value={axis}]').click()")
    last = f'return [...document.querySelectorAll("{LOSS} text:not(.end)")].pop().textContent'
    opened.wait(lambda: word in opened.run(last))


def test_on_a_telephone_nothing_sticks_out(opened: Browser, pictures: Path) -> None:
    opened.resize(400, 1500)
    opened.wait(lambda: opened.run("return document.querySelector('.chart svg').clientWidth") < 400)
    assert opened.run("return document.documentElement.scrollWidth") == 400
    opened.run(
        "document.querySelector('main').scrollIntoView(); document.querySelector('#runs').scrollTop = 0"
    )
    time.sleep(0.5)
    take(opened, pictures / "dash_narrow.png")


def test_rows_arrive_while_one_looks_and_hostile_text_is_text(
    window: Browser, folder: Path
) -> None:
    hostile = "<img src=x onerror=document.title=1>"
    run = begin(folder / "runs" / hostile, steps=10)
    with dash(folder) as started:
        window.resize(1600, 1000)
        window.open(started.url)
        css = f"#runs li[data-key='0/{hostile}']"
        window.wait(lambda: window.count(css))
        assert (
            window.text(f"{css} b") == hostile
            and window.run("return document.title") == "jaxlm dash"
        )
        if window.run(f'return document.querySelector("{css}").ariaPressed') == "false":
            window.click(css)
        for step in range(1, 6):
            write(run, row(step, 6.0 - step / 10, **{"perf/step_time_s": 1.0}))
            window.wait(lambda step=step: f"{step} of 10" in window.text(css), 5)
        window.wait(lambda: "5s left" in window.text(css) or "5.0s left" in window.text(css))
        window.wait(lambda: hostile in window.text("#legend"))
        shutil.rmtree(run)
        window.wait(lambda: not window.count(css))
        assert window.complaints() == []


def press(window: Browser, started: Dash, button: str, typed: str | None = None) -> str:
    """Presses a button, reads the code at the terminal, and types it or something else."""
    window.click(button)
    code = started.shows(r"type (\S+) in the browser")
    window.wait(lambda: window.count("dialog[open]"))
    assert code not in window.run("return document.documentElement.outerHTML")
    window.type("#typed", (typed or code) + "\n")
    return code


def test_a_person_presses_and_nobody_else_can(window: Browser, folder: Path) -> None:
    with dash(folder) as started:
        states = desk_here().standing().states
        draft = next(d for d, state in states.items() if state == "checked")
        wait = f"article[data-draft='{draft}'][data-act=approve]"
        button = f"{wait} button.main"
        window.open(started.url)  # without the link, or with the cookie of another start
        window.wait(lambda: window.count(wait))
        assert window.text("#doors") == "read-only"
        assert window.run(f'return document.querySelector("{button}").disabled')
        window.open("about:blank")
        window.open(started.shows(LINK))
        window.wait(lambda: window.text("#doors") == "buttons on")
        assert window.run("return location.hash") == ""
        code = press(window, started, button, typed=draft[:6])
        assert code.startswith(draft[:6]) and "at most" in started.seen
        window.wait(lambda: "not the code" in window.text("dialog .error"))
        assert desk_here().standing().states[draft] == "checked"
        window.click("#leave")
        press(window, started, button)
        window.wait(lambda: not window.count(wait))
        assert desk_here().standing().states[draft] == "approved"
        window.wait(lambda: "at the dash" in window.text("#log"))
    consents = desk_here().ledger.of_kind("consent")
    assert [c["at"] for c in consents if c["draft"] == draft] == ["dash"]


def test_without_a_terminal_it_reads_only(window: Browser, folder: Path) -> None:
    with dash(folder, has_terminal=False) as started:
        window.open(started.url)
        window.wait(lambda: window.count("#waiting article"))
        assert "read-only: it was started without a terminal" in window.text("#waiting")
        assert window.count("#waiting button:not([disabled])") == 0


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("report", "runs/muon/report.html"),
        ("ablation", "research/*.html"),
        ("research_report", "research/report.html"),
    ],
)
def test_the_pages_that_are_left_behind_open_without_complaint(
    window: Browser, folder: Path, pictures: Path, name: str, page: str
) -> None:
    path = next(
        p for p in sorted(folder.glob(page)) if name != "ablation" or p.name != "report.html"
    )
    window.complaints()  # of the pages before
    window.resize(1100, 1500)
    window.open(path.as_uri())
    window.wait(lambda: window.count("svg"))
    take(window, pictures / f"{name}.png")
    assert window.complaints() == []


def test_the_ledger_still_holds(folder: Path) -> None:
    """Of the material as it was copied: its gates, all of its records, without the checkpoints."""
    problems = verify(desk_here().ledger, Path("research"))
    assert [p for p in problems if "checkpoint" not in p] == []
