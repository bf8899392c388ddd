# SPDX-License-Identifier: Apache-2.0
"""Who may read, who may press, and that what is pressed is the terminal's own gate."""

import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxlm.core.errors import RunError
from jaxlm.dash.doors import Doors
from jaxlm.dash.house import House
from jaxlm.dash.server import FILES, MOST_BODY, Server
from jaxlm.research.desk import gates
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.signing import read_key
from jaxlm.research.verify import verify
from tests.jaxlm.dash.conftest import Visitor, serve
from tests.jaxlm.dash.test_runs import begin, row, write


def only_draft(desk: Desk) -> str:
    (draft,) = desk.standing().drafts
    return draft


def test_a_person_approves_and_the_record_is_the_terminals_but_for_the_place(
    visitor: Visitor, desk: Desk
) -> None:
    draft = only_draft(desk)
    visitor.enter()
    assert visitor.post("/ask", act="approve", draft=draft) == (200, "")
    shown = "".join(visitor.screen)
    assert "2e-2" in shown and "FLOPs left" in shown and draft[:12] in shown
    assert desk.standing().states[draft] == "checked"
    assert visitor.post("/answer", act="approve", draft=draft, typed=visitor.code()) == (200, "")
    assert desk.standing().states[draft] == "approved"
    (consent,) = desk.ledger.of_kind("consent")
    assert set(consent) == {"draft", "by", "at", "after", "signature"} and consent["at"] == "dash"
    assert (
        gates.fold(desk.records(), read_key())[1] == [] and verify(desk.ledger, desk.project) == []
    )
    status, error = visitor.post("/ask", act="approve", draft=draft)
    assert status == 400 and "nothing to approve" in error


def test_a_kept_arm_is_adopted_the_same_way(visitor: Visitor, desk: Desk) -> None:
    draft = only_draft(desk)
    visitor.enter()
    visitor.post("/ask", act="approve", draft=draft)
    visitor.post("/answer", act="approve", draft=draft, typed=visitor.code())
    outcome = {"draft": draft, "kept": ["a change"], "is_confirmed": True}
    gates.append(desk.ledger, read_key(), "start", {"draft": draft, "by": "x"})
    gates.append(desk.ledger, read_key(), "outcome", outcome)
    visitor.server.house.look()
    (waiting,) = visitor.server.house.story.told["waiting"]
    assert (waiting["act"], waiting["arm"]) == ("adopt", "a change")
    what = {"act": "adopt", "draft": draft, "arm": "a change"}
    assert visitor.post("/ask", **what) == (200, "")
    assert visitor.post("/answer", **what, typed=visitor.code()) == (200, "")
    assert desk.config().optim.peak_lr == 2e-2
    assert desk.ledger.of_kind("adoption")[0]["at"] == "dash"
    assert verify(desk.ledger, desk.project) == []


def test_a_refusal_needs_the_cookie_and_keeps_the_reason(visitor: Visitor, desk: Desk) -> None:
    draft = only_draft(desk)
    assert visitor.post("/refuse", draft=draft, why="no")[0] == 403
    visitor.enter()
    assert visitor.post("/refuse", draft=draft, why="too dear") == (200, "")
    assert desk.standing().states[draft] == "refused"
    assert desk.ledger.of_kind("refusal")[0]["why"] == "too dear"


def test_the_cookie_alone_signs_nothing(visitor: Visitor, desk: Desk) -> None:
    """All that a script with the cookie can know is in the page; the code is not."""
    draft = only_draft(desk)
    visitor.enter()
    told = json.dumps(visitor.server.house.story.told)
    visitor.post("/ask", act="approve", draft=draft)
    assert visitor.code() not in told
    for typed in (draft[:6], draft, ""):
        assert visitor.post("/answer", act="approve", draft=draft, typed=typed)[0] == 403
        visitor.post("/ask", act="approve", draft=draft)
    assert visitor.post("/ask", act="approve", draft=draft)[1].startswith("3 wrong codes")
    assert desk.ledger.of_kind("consent") == []


def test_a_code_for_one_draft_or_act_is_none_for_another(visitor: Visitor, desk: Desk) -> None:
    first = only_draft(desk)
    other = desk.draft([desk.ledger.of_kind("proposal")[0]["id"]], "again", seeds=3).id
    visitor.enter()
    visitor.post("/ask", act="approve", draft=first)
    status, error = visitor.post("/answer", act="approve", draft=other, typed=visitor.code())
    assert status == 403 and "changed since the terminal showed it" in error
    assert visitor.post("/answer", act="halt", draft=first, typed=visitor.code())[0] == 400
    assert desk.ledger.of_kind("consent") == []


FOREIGN = {
    "another name that points here": {"Host": "evil.example:80"},
    "no name": {"Host": None},
    "a form on another page": {"Origin": "http://evil.example"},
    "a page of another port": {"Origin": "http://127.0.0.1:1"},
    "a sandboxed page": {"Origin": "null"},
    "a script without a page": {"Origin": None},
    "a simple request": {"Content-Type": "text/plain"},
    "no cookie": {"Cookie": None},
    "a guessed cookie": {"Cookie": "jaxlm_dash=guess"},
}


@pytest.mark.parametrize("who", FOREIGN)
def test_what_comes_from_elsewhere_is_refused(visitor: Visitor, desk: Desk, who: str) -> None:
    draft = only_draft(desk)
    visitor.enter()
    assert visitor.post("/ask", act="approve", draft=draft) == (200, "")
    before = len(desk.records())
    for path in ("/ask", "/answer", "/refuse"):
        body = {"act": "approve", "draft": draft, "typed": visitor.code(), "why": "x"}
        assert visitor.send("POST", path, body, **FOREIGN[who])[0] == 403
    assert len(desk.records()) == before


def test_reading_is_for_this_host_alone_and_loads_nothing_from_elsewhere(visitor: Visitor) -> None:
    for path in [*FILES, "/metrics", "/curves?run=0/x", "/findings?run=0/x", "/nothing"]:
        status, headers, _ = visitor.send("GET", path)
        assert status in (200, 400, 404)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "http" not in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Server"] == "jaxlm"
        assert visitor.send("GET", path, Host="localhost.evil.example")[0] == 403
    assert visitor.server.server_address[0] == "127.0.0.1"


def test_the_page_names_no_other_place_and_makes_no_markup_of_text() -> None:
    text = "".join(path.read_text() for path, _ in FILES.values()).replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert not re.search(r"(https?:)?//[a-z]+\.", text)
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "style=",
    ):
        assert word not in text


def test_bodies_are_objects_of_modest_size(visitor: Visitor) -> None:
    visitor.enter()
    for body, status in ((b"[]", 400), (b"{", 400), (b"x" * (MOST_BODY + 1), 403)):
        assert visitor.send("POST", "/ask", body)[0] == status
    assert visitor.post("/ask", act="approve", draft="12")[0] == 400
    assert visitor.post("/nowhere")[0] == 400


def test_reports_are_shown_in_a_sandbox_and_nothing_outside_is(
    visitor: Visitor, tmp_path: Path
) -> None:
    run = begin(tmp_path / "runs" / "one")
    (run / "report.html").write_text("<script>1</script>")
    project = tmp_path / "research"
    (project / "page.html").write_text("x")
    (tmp_path / "secret.html").write_text("secret")
    (project / "link.html").symlink_to(tmp_path / "secret.html")
    visitor.server.house.look()
    for path in ("/report/0/one/report.html", "/project/page.html"):
        status, headers, body = visitor.send("GET", path)
        assert status == 200 and body
        assert headers["Content-Security-Policy"].startswith(
            "sandbox allow-scripts; default-src 'none'"
        )
    for path in (
        "/project/link.html", "/project/../secret.html", "/project/%2e%2e/secret.html", "/project/",
        "/project/ledger.jsonl", "/report/0/one/config.json/report.html", "/report/0/two/report.html",
        "/report/..%2f..%2fsecret.html", "/project/..", "/report/one/report.html",
    ):  # fmt: skip
        assert visitor.send("GET", path)[0] == 400, path


def events(visitor: Visitor) -> Iterator[dict]:
    there = http.client.HTTPConnection("127.0.0.1", visitor.server.server_port, timeout=20)
    there.request("GET", "/events")
    for line in there.getresponse():
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


def test_a_row_reaches_an_open_page_and_hostile_text_stays_text(
    visitor: Visitor, tmp_path: Path
) -> None:
    name = "<img src=x onerror=alert(1)>"
    run = begin(tmp_path / "runs" / name)
    visitor.server.house.look()
    stream = events(visitor)
    first = next(stream)
    if "cards" not in first:
        first |= next(stream)
    assert [card["label"] for card in first["cards"]] == [name]
    assert first["story"]["waiting"][0]["arms"][0]["changes"] == [
        {"field": "OptimConfig.peak_lr", "old": "0.01", "new": "2e-2"}
    ]
    write(run, row(1, 3.0))
    threading.Thread(target=visitor.server.house.look).start()
    assert next(stream)["cards"][0]["step"] == 1


@pytest.fixture
def shut(desk: Desk) -> Iterator[Visitor]:
    house = House([], desk.project, lambda: desk, Doors(None))
    yield from serve(house, [])


def test_without_a_terminal_the_page_reads_only_and_says_why(shut: Visitor, desk: Desk) -> None:
    news = shut.server.house.news("anything")
    shut.server.house.look()
    assert next(news)["doors"] == {"is_open": False, "why": "it was started without a terminal"}  # type: ignore[index]
    shut.cookie = "None"
    for path in ("/enter", "/ask", "/answer", "/refuse"):
        status, error = shut.post(
            path, link="None", act="approve", draft=only_draft(desk), typed=""
        )
        assert status == 403 and error
    assert len(desk.ledger.of_kind("consent") + desk.ledger.of_kind("refusal")) == 0


def test_a_port_in_use_is_one_line(visitor: Visitor) -> None:
    port = visitor.server.server_port
    with pytest.raises(RunError, match=f"port {port} is in use; give another with --port"):
        Server(visitor.server.house, port)
