# SPDX-License-Identifier: Apache-2.0
"""An attack: what somebody tries who wants a better result than is true, or what is not theirs."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxlm.core.errors import CheckpointError, ConfigError, RunError
from jaxlm.research.desk.signing import KEY_VARIABLE, own_key
from jaxlm.research.sandbox import sandbox

SECRET = "sk-ant-secret-of-a-person"  # planted where nobody may read it


class GotThroughError(AssertionError):
    """The attack had what it wanted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """`run` is given an empty folder, and says what stopped it.

    Raises GotThroughError where nothing did.  Any other error is a fault of the attack itself.
    """

    target: str  # what is attacked
    name: str
    run: Callable[[Path], str]
    needs_walls: bool = False  # it is code, which runs behind the walls or not at all


def behind_walls(target: str, name: str, run: Callable[[Path], str]) -> Attack:
    return Attack(target=target, name=name, run=run, needs_walls=True)


def refused(act: Callable[[], object], why: str) -> str:
    """The one line with which a step was refused; `why` is a pattern that it must match.

    Raises GotThroughError for a step that was taken, or refused for another reason.
    """
    try:
        act()
    except (CheckpointError, ConfigError, RunError) as e:
        told = str(e)
        if "\n" in told or not re.search(why, told):
            raise GotThroughError(f"stopped for another reason than {why!r}: {told}") from e
        return told
    raise GotThroughError("nothing stopped it")


def shown(problems: list[str], why: str) -> str:
    """The problem, of those that a check found, that tells of it.  Raises GotThroughError for none."""
    for problem in problems:
        if re.search(why, problem):
            return problem
    raise GotThroughError(f"no check tells of it; {len(problems)} other problem(s): {problems[:1]}")


def walls_stand() -> bool:
    """Whether both walls do on this machine."""
    return sandbox.level() == "namespaces and landlock"


@contextlib.contextmanager
def planted(folder: Path) -> Iterator[None]:
    """Secrets that attacks are after: a provider's key, and a key for approvals that is not yours."""
    before = {name: os.environ.get(name) for name in ("ANTHROPIC_API_KEY", KEY_VARIABLE)}
    os.environ["ANTHROPIC_API_KEY"] = SECRET
    os.environ[KEY_VARIABLE] = str(folder / "keys" / "approval.key")
    try:
        own_key()
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
