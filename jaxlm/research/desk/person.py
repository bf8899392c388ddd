# SPDX-License-Identifier: Apache-2.0
"""What only a person does: begin, approve, refuse, adopt, sign an envelope, resume.

Each asks at the terminal itself (/dev/tty, not the input of the process), so that no script, and
no model that can start commands, answers for the person.  Each leaves a signed record.
"""

import getpass
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

from jaxlm.core.canonical import to_jsonable
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research.desk import drafting, gates
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.quoting import plain
from jaxlm.research.desk.records import Envelope, Project
from jaxlm.research.desk.signing import append_signed, own_key, read_key
from jaxlm.telemetry.readable import number

Ask = Callable[[str, str], bool]  # what is asked, and the answer that means yes


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
    for name in ("max_flops", "max_usd", "max_hours"):
        if not getattr(project, name) >= 0:
            raise ConfigError(f"{name} must be >= 0, got {getattr(project, name)}")
    one = drafting.flops(base)
    if project.max_flops < 4 * one:
        raise ConfigError(
            f"--max-flops {project.max_flops:.3g} is too little: one run takes {one:.3g}, and a "
            "verdict at least four"
        )
    append_signed(desk.ledger, "project", project, own_key())


def approve(desk: Desk, prefix: str, ask: Ask = at_terminal) -> bool:
    """Shows a draft and asks; False where the person did not agree."""
    name = desk.find_draft(prefix)
    standing = desk.standing()
    state = standing.states[name]
    if state != "checked":
        raise RunError(f"draft {name[:12]} is {state}, not checked; there is nothing to approve")
    if not ask("\n".join(described(desk, name)), name[:6]):
        return False
    append_signed(desk.ledger, "consent", {"draft": name, "by": _who()}, own_key())
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
    effect, low, high = draft["predicted"]
    lines += [
        f"  {len(draft['arms'])} arms and the baseline, {draft['seeds']} seeds, {draft['confirm']} fresh",
        f"  expected of the best: {effect:+.4f} {draft['metric']}, {low:+.4f} to {high:+.4f}",
        f"  at most {number(draft['flops'])}FLOPs; the project has {number(left)}FLOPs left",
    ]
    return lines


def refuse(desk: Desk, prefix: str, why: str) -> None:
    name = desk.find_draft(prefix)
    body = {"draft": name, "by": _who(), "why": plain(why)}
    gates.append(desk.ledger, read_key(), "refusal", body)


def adopt(desk: Desk, prefix: str, arm: str, ask: Ask = at_terminal) -> bool:
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
    if not ask(f"adopt {arm!r} of draft {name[:12]} into the project's config: {told}", name[:6]):
        return False
    body = {"draft": name, "arm": arm, "changes": changes, "by": _who()}
    append_signed(desk.ledger, "adoption", body, own_key())
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
    if not (flops > 0 and hours > 0 and fields):
        raise ConfigError("an envelope needs fields, FLOPs and hours above 0")
    by = _who()
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
    append_signed(desk.ledger, "resume", {"by": _who()}, own_key())
    return True


def _line(tty: BinaryIO) -> str:
    text = b""
    while not text.endswith(b"\n"):
        byte = tty.read(1)
        if not byte:
            break
        text += byte
    return text.decode("utf-8", "replace")


def _who() -> str:
    return getpass.getuser()
