# SPDX-License-Identifier: Apache-2.0
"""Nobody answers for the person who sits at the terminal."""

import re

import pytest

from jaxlm.dash.doors import GOOD_FOR_S, MOST_WRONG, DoorError, Doors

TEXT, WANTED = "draft 528112: try it", "528112"


class Desk:
    """Doors with a terminal that remembers, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.now = 0.0
        self.doors = Doors(self.shown.append, lambda: self.now)
        assert self.doors.link is not None
        self.cookie = self.doors.enter(self.doors.link)

    def code(self, text: str = TEXT) -> str:
        assert self.doors.show(text, WANTED) is False
        return re.findall(rf"type ({WANTED}-\d{{6}}) in", self.shown[-1])[-1]

    def answer(self, typed: str, text: str = TEXT) -> bool:
        return self.doors.answered(typed)(text, WANTED)


def test_the_link_opens_to_one_browser_once() -> None:
    shown: list[str] = []
    doors = Doors(shown.append)
    link = doors.link
    assert link is not None and not doors.is_open_to(None) and not doors.is_open_to("")
    with pytest.raises(DoorError, match="is not the one at the terminal"):
        doors.enter("guess")
    cookie = doors.enter(link)
    assert doors.is_open_to(cookie) and not doors.is_open_to(link) and not doors.is_open_to(None)
    assert "if that was not you" in shown[-1]
    with pytest.raises(DoorError, match="used before"):
        doors.enter(link)
    assert doors.is_open_to(cookie)


def test_the_code_signs_what_the_terminal_showed_once() -> None:
    desk = Desk()
    code = desk.code()
    assert TEXT in desk.shown[-1]
    assert desk.answer(f" {code}\n")
    with pytest.raises(DoorError, match="no question is open"):
        desk.answer(code)


def test_another_text_a_late_answer_or_an_older_code_signs_nothing() -> None:
    desk = Desk()
    code = desk.code()
    with pytest.raises(DoorError, match="it changed since"):
        desk.answer(code, TEXT + " and more")
    code = desk.code()
    desk.now += GOOD_FOR_S + 1
    with pytest.raises(DoorError, match="no question is open"):
        desk.answer(code)
    old = desk.code()
    new = desk.code()
    assert old != new
    with pytest.raises(DoorError, match="not the code"):
        desk.answer(old)
    with pytest.raises(DoorError, match="no question is open"):
        desk.answer(new)  # a wrong answer takes the question with it


def test_guessing_shuts_the_doors_for_good() -> None:
    desk = Desk()
    for guess in ("", WANTED, f"{WANTED}-000000x")[:MOST_WRONG]:
        assert desk.doors.is_open_to(desk.cookie)
        desk.code()
        with pytest.raises(DoorError, match="not the code"):
            desk.answer(guess)
    assert not desk.doors.is_open_to(desk.cookie)
    assert desk.doors.why_shut == "3 wrong codes were given; start it again"
    with pytest.raises(DoorError, match="3 wrong codes"):
        desk.code()


def test_without_a_terminal_they_never_open() -> None:
    doors = Doors(None)
    assert doors.why_shut == "it was started without a terminal"
    assert doors.link is None and not doors.is_open_to("") and not doors.is_open_to(None)
    for link in ("", "None"):
        with pytest.raises(DoorError):
            doors.enter(link)


def test_a_terminal_that_went_away_shuts_them() -> None:
    gone = False

    def say(text: str) -> None:
        if gone:
            raise OSError("gone")

    doors = Doors(say)
    assert doors.link is not None
    cookie = doors.enter(doors.link)
    gone = True
    with pytest.raises(DoorError, match="terminal of this dash is gone"):
        doors.show(TEXT, WANTED)
    assert not doors.is_open_to(cookie)
    with pytest.raises(DoorError, match="its terminal is gone"):
        doors.answered(f"{WANTED}-000000")(TEXT, WANTED)
