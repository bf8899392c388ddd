# SPDX-License-Identifier: Apache-2.0
"""What only a person does: begin, approve, refuse, adopt, sign an envelope, resume.

Each asks at the terminal itself (/dev/tty, not the input of the process), so that no script, and
no model that can start commands, answers for the person.  Each leaves a signed record.  `jaxlm dash`
asks at the terminal too, and has the answer typed in its page (dash/doors.py): `at` says which.
"""

import getpass
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from jaxlm.core.canonical import to_jsonable, write_atomic
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research.budget import run_flops
from jaxlm.research.desk import gates
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.quoting import plain
from jaxlm.research.desk.records import Envelope, Project
from jaxlm.research.desk.signing import append_signed, own_key, read_key
from jaxlm.research.records import PATCH
from jaxlm.research.sandbox import sandbox
from jaxlm.telemetry.readable import number

Ask = Callable[[str, str], bool]  # what is asked, and the answer that means yes
TERMINAL = "terminal"  # where an answer was given


def at_terminal(text: str, wanted: str) -> bool:
    """Whether the person at the terminal types `wanted`.  Raises RunError without a terminal."""
    try:
        with open("/dev/tty", "r+b", buffering=0) as tty:
            tty.write(f"{text}\ntype {wanted} to agree, anything else to leave it: ".encode())
            answer = _line(tty)
    except OSError as e:
        raise RunError(
            "this needs a person at a terminal, and there is none here; give the command in one"
        ) from e
    return answer.strip() == wanted


def begin(desk: Desk, project: Project) -> None:
    """Fixes the config and the limits; given again, changes the limits."""
    base = desk.load(project.config, project.overrides)
    desk.load(
        project.config, [*project.overrides, *project.promote]
    )  # or it shows after the screen
    for name in ("max_flops", "max_usd", "max_hours"):
        if not 0 <= getattr(project, name) < math.inf:
            raise ConfigError(f"{name} must be a number >= 0, got {getattr(project, name)}")
    one = run_flops(base)
    if project.max_flops < 4 * one:
        raise ConfigError(
            f"--max-flops {project.max_flops:.3g} is too little: one run takes {one:.3g}, and a "
            "verdict at least four"
        )
    append_signed(desk.ledger, "project", project, own_key())


def approve(
    desk: Desk,
    prefix: str,
    ask: Ask = at_terminal,
    at: str = TERMINAL,
    is_weaker_allowed: bool = False,
) -> bool:
    """Shows a draft and asks; False where the person did not agree.

    With code from a model it asks twice: whether the code may be tried behind the sandbox's walls, and,
    once its tests and its cost are known, whether the draft may run.
    is_weaker_allowed: one wall will do for that code, where this machine lacks the other; is recorded
    """
    name = desk.find_draft(prefix)
    standing = desk.standing()
    state = standing.states[name]
    if state != "checked":
        raise RunError(f"draft {name[:12]} is {state}, not checked; there is nothing to approve")
    patches = gates.patches_of(standing.drafts[name])
    if (
        patches
        and name not in standing.tested
        and not _trial(desk, name, ask, at, is_weaker_allowed)
    ):
        return False
    if not ask("\n".join(described(desk, name)), name[:6]):
        return False
    body: dict[str, Any] = {"draft": name, "by": user_name(), "at": at}
    if patches:
        body |= {"is_weaker_allowed": is_weaker_allowed, "walls": sandbox.level()}
    append_signed(desk.ledger, "consent", body, own_key())
    return True


def _trial(desk: Desk, name: str, ask: Ask, at: str, is_weaker_allowed: bool) -> bool:
    """Lets a draft's code be tried, and records what came of it; False where the person would not.

    Raises RunError for code that failed: its draft is refused.
    """
    from jaxlm.research.patch.trial import try_patch

    text = "may this code be tried in the sandbox? its tests and a few updates; nothing is kept"
    if not ask("\n".join([*described(desk, name), text]), "try"):
        return False
    append_signed(desk.ledger, "trial", {"draft": name, "by": user_name(), "at": at}, own_key())
    standing, config = desk.standing(), desk.config()
    problems, trials = list[str](), {}
    for patch in sorted(gates.patches_of(standing.drafts[name])):
        found = try_patch(config, standing.patches[patch]["diff"], is_weaker_allowed)
        problems += [f"patch {patch[:12]}: {problem}" for problem in found.problems]
        trials[patch] = {**to_jsonable(found), "lines": found.lines()}
    gates.append(
        desk.ledger, read_key(), "tested", {"draft": name, "trials": trials, "problems": problems}
    )
    if problems:
        raise RunError(f"draft {name[:12]} is refused: {'; '.join(problems)}")
    return True


def described(desk: Desk, name: str) -> list[str]:
    """A draft as the person reads it before it costs anything."""
    draft, standing = desk.standing().drafts[name], desk.standing()
    assert standing.project is not None
    left = standing.project["max_flops"] - standing.flops
    lines = [f"draft {name[:12]}, by {draft['by']}: {plain(draft['hypothesis'], 300)}"]
    for arm in draft["arms"]:
        changes = ", ".join(f"{field} = {value}" for field, value in arm["changes"].items())
        lines.append(f"  {arm['name']}: {changes}")
        if PATCH in arm["changes"]:
            patch = standing.patches[arm["changes"][PATCH]]
            lines += coloured(patch["diff"])
        trial = standing.tested.get(name, {}).get("trials", {}).get(arm["changes"].get(PATCH))
        lines += [f"  {line}" for line in (trial or {}).get("lines", [])]
    effect, low, high = draft["predicted"]
    lines += [
        f"  {len(draft['arms'])} arms and the baseline, {draft['seeds']} seeds, {draft['confirm']} fresh",
        f"  expected of the best: {effect:+.4f} {draft['metric']}, {low:+.4f} to {high:+.4f}",
        f"  at most {number(draft['flops'])}FLOPs; the project has {number(left)}FLOPs left",
    ]
    return lines


COLOURS = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"}  # added, removed, place
HEAD = "\x1b[1m"


def coloured(diff: str, has_colours: bool = True) -> list[str]:
    """A diff for a terminal, which nothing in it can steer."""
    lines = []
    for line in diff.splitlines():
        safe = "".join(c if c.isprintable() else " " for c in line.expandtabs(4))
        colour = HEAD if line.startswith(("+++", "---")) else COLOURS.get(line[:1], "")
        lines.append(f"{colour}{safe}\x1b[0m" if colour and has_colours else safe)
    return lines


def refuse(desk: Desk, prefix: str, why: str, at: str = TERMINAL) -> None:
    name = desk.find_draft(prefix)
    body = {"draft": name, "by": user_name(), "at": at, "why": plain(why)}
    gates.append(desk.ledger, read_key(), "refusal", body)


def adopt(desk: Desk, prefix: str, arm: str, ask: Ask = at_terminal, at: str = TERMINAL) -> bool:
    """Makes a confirmed arm part of the project's config."""
    name = desk.find_draft(prefix)
    standing = desk.standing()
    state, kept = standing.states[name], standing.kept.get(name, [])
    if state != "confirmed":
        raise RunError(f"draft {name[:12]} is {state}, not confirmed on fresh seeds")
    if arm not in kept:
        raise ConfigError(f"arm {arm!r} was not kept; kept: {', '.join(kept)}")
    changes = next(a["changes"] for a in standing.drafts[name]["arms"] if a["name"] == arm)
    told = ", ".join(f"{field} = {value}" for field, value in changes.items())
    if PATCH in changes:
        told += "; its code you apply yourself, with git apply"
    if not ask(f"adopt {arm!r} of draft {name[:12]} into the project's config: {told}", name[:6]):
        return False
    body = {"draft": name, "arm": arm, "changes": changes, "by": user_name(), "at": at}
    append_signed(desk.ledger, "adoption", body, own_key())
    if PATCH in changes:
        folder = desk.project / "patches"
        folder.mkdir(exist_ok=True)
        diff = standing.patches[changes[PATCH]]["diff"]
        write_atomic(folder / f"{changes[PATCH][:12]}.diff", diff.encode())
    return True


def sign_envelope(
    desk: Desk, fields: Sequence[str], flops: float, hours: float, ask: Ask = at_terminal,
    *, adopts: bool = False,
) -> bool:  # fmt: skip
    """Drafts that vary only `fields` are approved without being asked about, within the limits.

    adopts: and what they keep and confirm on fresh seeds may be adopted so.
    """
    known = {view.field for view in desk.fields()}
    for field in fields:
        if field not in known:
            raise ConfigError(f"{field!r} cannot be proposed, so no envelope can name it")
    if not (0 < flops < math.inf and 0 < hours < math.inf and fields):
        raise ConfigError("an envelope needs fields, and FLOPs and hours that are numbers above 0")
    by = user_name()
    until = time.time() + hours * 3600
    envelope = Envelope(fields=tuple(fields), flops=flops, until=until, by=by, adopts=adopts)
    text = (
        f"for {hours:g} hours, drafts that vary only {', '.join(fields)} need no further approval, "
        f"up to {number(flops)}FLOPs together"
    )
    if adopts:
        text += "; what they keep and confirm on fresh seeds is adopted without further question"
    if not ask(text, envelope.id[:6]):
        return False
    append_signed(desk.ledger, "envelope", {"id": envelope.id, **to_jsonable(envelope)}, own_key())
    return True


def resume(desk: Desk, ask: Ask = at_terminal) -> bool:
    """Turns the kill switch off."""
    if not desk.standing().is_halted:
        raise RunError("the kill switch is off; there is nothing to resume")
    if not ask("turn the kill switch off: approved drafts may start again", "resume"):
        return False
    append_signed(desk.ledger, "resume", {"by": user_name()}, own_key())
    return True


def _line(tty: BinaryIO) -> str:
    text = b""
    while not text.endswith(b"\n"):
        byte = tty.read(1)
        if not byte:
            break
        text += byte
    return text.decode("utf-8", "replace")


def user_name() -> str:
    return getpass.getuser()
