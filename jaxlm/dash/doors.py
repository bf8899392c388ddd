# SPDX-License-Identifier: Apache-2.0
"""Who may press a button: the person at the terminal where the dash was started.

    link   shown at the terminal, good once: the browser that brings it gets a cookie
    code   shown at the terminal for one question, good once and for three minutes: it signs

Both go to /dev/tty and nowhere else.  The cookie only brings a question to the terminal; what signs is
the code, so that a page, a script or a model that has got hold of the cookie, or that drives the
browser, still cannot answer for the person.  Standard library only.
"""

import dataclasses
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable

from jaxlm.core.errors import UserError
from jaxlm.telemetry.readable import printable

Say = Callable[[str], None]  # writes to the terminal; raises OSError once that is gone
GOOD_FOR_S = 180.0
MOST_WRONG = 3  # answers, until the dash is started again


class DoorError(UserError):
    """What the doors do not let through."""


@dataclasses.dataclass(frozen=True)
class Question:
    """Bound to the very text that the terminal showed."""

    digest: str
    wanted: str
    until: float


def terminal() -> Say:
    """Writes to the controlling terminal.  Raises OSError where there is none."""
    tty = open("/dev/tty", "wb", buffering=0)

    def say(text: str) -> None:
        tty.write(printable(text).encode() + b"\n")

    return say


class Doors:
    """Shut for good without a terminal; `why_shut` says so."""

    def __init__(
        self, say: Say | None, clock: Callable[[], float] = time.monotonic,
        why_shut: str = "it was started without a terminal",
    ) -> None:  # fmt: skip
        self._say, self._clock = say, clock
        self._lock = threading.Lock()
        self.link: str | None = secrets.token_urlsafe(24) if say else None
        self._cookie: str | None = None
        self._question: Question | None = None
        self._wrong = 0
        self.why_shut: str | None = None if say else why_shut

    def enter(self, link: str) -> str:
        """The cookie for the browser that brings the link.  Raises DoorError for another, or a used one."""
        with self._lock:
            if self.link is None or not same(link, self.link):
                raise DoorError("this link was used before, or is not the one at the terminal")
            self.link, self._cookie = None, secrets.token_urlsafe(24)
            self.tell("the link was opened in a browser; if that was not you, end this with Ctrl-C")
            return self._cookie

    def is_open_to(self, cookie: str | None) -> bool:
        known = self._cookie
        return not self.why_shut and None not in (cookie, known) and same(str(cookie), str(known))

    def show(self, text: str, wanted: str) -> bool:
        """Puts a question to the terminal; False, since nobody has answered it yet.

        An `Ask` of research.desk.person, as `answered` is: the gate is theirs.
        """
        with self._lock:
            self._must_be_open()
            code = f"{wanted}-{secrets.randbelow(10**6):06d}"
            self.tell(f"\n{text}\nto agree, type {code} in the browser; otherwise do nothing")
            self._question = Question(_digest(text), code, self._clock() + GOOD_FOR_S)
        return False

    def answered(self, typed: str) -> Callable[[str, str], bool]:
        """An `Ask` that agrees if the last question shown had this text, and this code was typed."""

        def ask(text: str, wanted: str) -> bool:
            with self._lock:
                self._must_be_open()
                question, self._question = self._question, None
                if question is None or self._clock() > question.until:
                    raise DoorError("no question is open; press the button again")
                if question.digest != _digest(text):
                    raise DoorError(
                        "it changed since the terminal showed it; press the button again"
                    )
                if same(typed.strip(), question.wanted):
                    self.tell("agreed, and signed")
                    return True
                self._wrong += 1
                if self._wrong >= MOST_WRONG:
                    self._shut(f"{MOST_WRONG} wrong codes were given; start it again")
                raise DoorError("that is not the code at the terminal; press the button again")

        return ask

    def _must_be_open(self) -> None:
        if self.why_shut is not None:
            raise DoorError(self.why_shut)

    def tell(self, text: str) -> None:
        """Writes to the terminal.  Raises DoorError, and shuts the doors, once that is gone."""
        assert self._say is not None
        try:
            self._say(text)
        except OSError as e:
            self._shut("its terminal is gone")
            raise DoorError("the terminal of this dash is gone; start it again in one") from e

    def _shut(self, why: str) -> None:
        self.why_shut, self._cookie, self.link = why, None, None


def same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(), known.encode())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
