# SPDX-License-Identifier: Apache-2.0
"""`jaxlm research init ... adopt`: the loop's verbs on the command line, for people and for seats."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli import desk_text
from jaxlm.cli.common import add_config_arguments
from jaxlm.cli.seat import add_model_arguments, add_seat_arguments, ask_claude, seat_of
from jaxlm.core.errors import ConfigError, RunError

if TYPE_CHECKING:
    from jaxlm.config import RunConfig
    from jaxlm.research.desk.desk import Desk
    from jaxlm.research.runner import Progress

VERBS = {
    "init": "begin a project: the config to improve, and what may be spent on it",
    "status": "limits left, adopted changes, drafts and what waits for you",
    "propose": "changes worth trying, by the rules or by a model (--with claude)",
    "patch": "put a change of the code, a unified diff with its test, on the list",
    "draft": "one experiment of some proposals, checked by a program",
    "approve": "let a draft run; asks at the terminal, and signs",
    "refuse": "end a draft, with the reason",
    "run": "train and judge approved drafts",
    "review": "what came of a draft: verdicts with intervals, and what they rest on",
    "adopt": "make a confirmed arm part of the project's config; asks at the terminal, and signs",
    "envelope": "approve beforehand what varies only some fields, within limits; asks, and signs",
    "report": "a page and a text: what was asked, what came out, what it cost, what to do next",
    "halt": "kill switch: nothing starts, and what runs stops",
    "resume": "turn the kill switch off; asks at the terminal, and signs",
}


def add_verbs(verbs: Any, project: Callable[[argparse.ArgumentParser], None]) -> None:
    """A subparser for each verb; `project` adds the option --project."""
    made = {name: verbs.add_parser(name, help=text) for name, text in VERBS.items()}
    for parser in made.values():
        project(parser)
    begin = made["init"]
    add_config_arguments(begin)
    begin.add_argument("--max-flops", type=float, required=True, metavar="X", help="of all runs")
    begin.add_argument(
        "--max-usd", type=float, default=0.0, metavar="X", help="for a model's calls"
    )
    begin.add_argument(
        "--max-hours", type=float, default=24.0, metavar="X", help="from the first start"
    )
    begin.add_argument(
        "--promote", action="append", default=[], metavar="KEY=VALUE",
        help="a larger scale, at which what is kept must hold too; repeatable",
    )  # fmt: skip
    add_model_arguments(begin)
    made["propose"].add_argument(
        "--run", dest="look", type=Path, metavar="RUN", help="diagnose it first"
    )
    made["propose"].add_argument(
        "--count", type=int, default=4, help="at most (default %(default)s)"
    )
    add_seat_arguments(made["propose"])
    _add_patch_arguments(made)
    made["draft"].add_argument(
        "proposals", nargs="*", metavar="PROPOSAL", help="default: all open ones"
    )
    made["draft"].add_argument(
        "--seeds", type=int, default=4, help="of each arm (default %(default)s)"
    )
    made["draft"].add_argument("--hypothesis", default="", help="what you expect, in words; kept")
    for name in ("approve", "refuse", "adopt"):
        made[name].add_argument("draft", metavar="DRAFT", help="its id, 6 or more first characters")
    made["refuse"].add_argument("--why", required=True, help="the reason; kept")
    made["adopt"].add_argument("arm", metavar="ARM", help="as `status` names it")
    made["run"].add_argument("draft", nargs="?", metavar="DRAFT", help="default: all approved ones")
    made["run"].add_argument(
        "--workers", type=int, default=1, help="processes side by side (default 1)"
    )
    made["review"].add_argument("draft", nargs="?", metavar="DRAFT", help="default: all reviewed")
    made["envelope"].add_argument(
        "--field", action="append", required=True, dest="fields", metavar="FIELD"
    )
    made["envelope"].add_argument("--flops", type=float, required=True, metavar="X")
    made["envelope"].add_argument("--hours", type=float, required=True, metavar="X")
    made["envelope"].add_argument(
        "--adopt", action="store_true", help="what is confirmed on fresh seeds is adopted too"
    )
    made["halt"].add_argument("--why", default="", help="the reason; kept")


def _add_patch_arguments(made: dict[str, argparse.ArgumentParser]) -> None:
    """Of code from a model."""
    made["patch"].add_argument(
        "diff", type=Path, metavar="FILE", help="unified, as git diff makes it"
    )
    made["patch"].add_argument("--title", required=True, help="a few words")
    made["patch"].add_argument("--why", default="", help="the reason; kept")
    made["patch"].add_argument(
        "--effect", default="-0.01,-0.05,0.03", metavar="E,LOW,HIGH",
        help="expected change of bits per byte, and an interval that holds it (default %(default)s)",
    )  # fmt: skip
    made["approve"].add_argument(
        "--weaker-walls", action="store_true",
        help="one of namespaces and Landlock will do for code from a model; is recorded",
    )  # fmt: skip
    made["init"].add_argument(
        "--patch-path", action="append", default=[], metavar="PATH",
        help="what a patch of the code may touch, instead of layers, model and optimizer; repeatable",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from jaxlm.research.desk import person

    desk = desk_of(args.project, who=person.user_name())
    act: dict[str, Callable[[argparse.Namespace, Desk], int]] = {
        "init": _init, "status": _status, "propose": _propose, "patch": _patch, "draft": _draft,
        "run": _run, "review": _review, "report": _report,
    }  # fmt: skip
    if args.verb in act:
        return act[args.verb](args, desk)
    if args.verb == "refuse":
        person.refuse(desk, args.draft, args.why)
        return _say("refused")
    if args.verb == "halt":
        return _say(desk.halt(args.why).said)
    agreed = {
        "approve": lambda: person.approve(desk, args.draft, is_weaker_allowed=args.weaker_walls),
        "adopt": lambda: person.adopt(desk, args.draft, args.arm),
        "envelope": lambda: person.sign_envelope(
            desk, args.fields, args.flops, args.hours, adopts=args.adopt
        ),
        "resume": lambda: person.resume(desk),
    }[args.verb]()
    return _say("done, and signed" if agreed else "left as it was")


def desk_of(
    project: Path, who: str, runs: Sequence[Path] = (Path("runs"),), workers: int = 0,
    progress: "Progress | None" = None,
) -> "Desk":  # fmt: skip
    from jaxlm.cli.gin_edge import load
    from jaxlm.research.desk.desk import Desk
    from jaxlm.research.launch import Workers
    from jaxlm.research.runner import Means

    def read(files: Sequence[str], overrides: Sequence[str]) -> "RunConfig":
        return load(list(files), list(overrides))

    means = None
    if progress is not None:
        means = Means(project=project, progress=progress, workers=Workers(workers))
    return Desk(project, read, who, runs, means)


def _init(args: argparse.Namespace, desk: "Desk") -> int:
    from jaxlm.research.desk import person
    from jaxlm.research.desk.records import Project, Seat
    from jaxlm.research.patch.diff import PATHS, checked_paths

    person.begin(
        desk,
        Project(
            config=tuple(args.config), overrides=tuple(args.overrides), promote=tuple(args.promote),
            max_flops=args.max_flops, max_usd=args.max_usd, max_hours=args.max_hours,
            paths=checked_paths(args.patch_path or PATHS), seat=seat_of(args, Seat()),
        ),
    )  # fmt: skip
    return _say(f"project begun in {args.project}; next: jaxlm research propose")


def _propose(args: argparse.Namespace, desk: "Desk") -> int:
    from jaxlm.research.seats import offline

    if args.count < 1:
        raise ConfigError(f"--count must be >= 1, got {args.count}")
    desk.standing()
    if args.look is not None:
        desk = desk_of(args.project, desk.seat, (Path("runs"), args.look.resolve().parent))
        for finding in offline.look(desk, args.look.resolve().name):
            print(f"{finding.cause} ({finding.confidence:.0%}): {'; '.join(finding.evidence)}")
    if args.seat == "claude":
        return _ask_claude(args, desk)
    rules = desk_of(args.project, offline.SEAT)
    found = offline.propose(rules, args.count)
    if not found:
        return _say("nothing left that was not tried; propose by hand, or with a model")
    print("\n".join(desk_text.proposals(found)))
    return _say("next: jaxlm research draft")


def _ask_claude(args: argparse.Namespace, desk: "Desk") -> int:
    from jaxlm.research.desk.records import Seat

    project = desk.standing().project
    assert project is not None  # or there would be no standing
    seat = seat_of(args, Seat(**project.get("seat", {})))
    return _say(ask_claude(desk_of(args.project, seat.model), seat, args.count))


def _patch(args: argparse.Namespace, desk: "Desk") -> int:
    desk.standing()
    try:
        effect, low, high = map(float, args.effect.split(","))
    except ValueError:
        raise ConfigError(f"--effect must be three numbers, got {args.effect!r}") from None
    try:
        diff = args.diff.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise ConfigError(f"{args.diff} cannot be read: {e}; give a unified diff") from e
    found = desk.patch(args.title, diff, args.why, effect, low, high)
    if found.repeats is not None:
        raise ConfigError(
            f"the patch repeats {found.repeats!r}, which was tried or proposed before"
        )
    return _say(f"{found.id[:12]}  {found.title}; next: jaxlm research draft {found.id[:12]}")


def _draft(args: argparse.Namespace, desk: "Desk") -> int:
    chosen = args.proposals
    if not chosen:
        asked = {name for d in desk.standing().drafts.values() for name in d["proposals"]}
        chosen = [p["id"] for p in desk.ledger.of_kind("proposal") if p["id"] not in asked]
    if not chosen:
        raise RunError("no open proposals; `jaxlm research propose` makes some")
    titles = ", ".join(p["title"] for p in desk.find_proposals(chosen))
    made = desk.draft(list(chosen), args.hypothesis or f"one of these helps: {titles}", args.seeds)
    print("\n".join(desk_text.draft_lines(made)))
    if made.state == "checked":
        return _say(f"next: jaxlm research approve {made.id[:12]}")
    return 0 if made.state == "approved" else 2


def _run(args: argparse.Namespace, desk: "Desk") -> int:
    from jaxlm.research.ablation_table import table
    from jaxlm.research.desk.running import run_draft
    from jaxlm.telemetry.display import make_display

    states = desk.standing().states
    ready = [name for name, state in states.items() if state in ("approved", "running")]
    chosen = [desk.find_draft(args.draft)] if args.draft else ready
    if not chosen:
        raise RunError("no draft is approved; `jaxlm research status` shows what waits for you")
    for name in chosen:
        with make_display() as display:
            desk = desk_of(args.project, desk.seat, workers=args.workers, progress=display.progress)
            assert desk.means is not None
            stages = run_draft(desk, name, desk.means)
        if stages:  # a pilot has none
            print("\n".join(table(stages)))
        print(
            "\n".join(desk_text.draft_lines(next(d for d in desk.status().drafts if d.id == name)))
        )
    return 0


def _review(args: argparse.Namespace, desk: "Desk") -> int:
    from jaxlm.research.ablation_table import table
    from jaxlm.research.desk.reviews import stages_of

    records, drafts = desk.records(), {draft.id: draft for draft in desk.status().drafts}
    chosen = [desk.find_draft(args.draft)] if args.draft else list(drafts)
    found = {name: [stage for _, stage in stages_of(name, records)] for name in chosen}
    if not any(found.values()):
        raise RunError("nothing was reviewed yet; `jaxlm research run` does it after the runs")
    for name, stages in found.items():
        if stages:
            print("\n".join([*desk_text.draft_lines(drafts[name]), *table(stages), ""]))
    return 0


def _status(args: argparse.Namespace, desk: "Desk") -> int:
    print("\n".join(desk_text.status_lines(desk.status())))
    return 0


def _report(args: argparse.Namespace, desk: "Desk") -> int:
    from jaxlm.research.desk.report import write_report

    return _say("report: " + ", ".join(map(str, write_report(desk, args.project))))


def _say(text: str) -> int:
    sys.stdout.write(text + "\n")
    return 0
