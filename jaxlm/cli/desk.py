# SPDX-License-Identifier: Apache-2.0
"""`jaxlm research init ... adopt`: the loop's verbs on the command line, for people and for seats."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.common import add_config_arguments
from jaxlm.core.errors import ConfigError, RunError

if TYPE_CHECKING:
    from jaxlm.config import RunConfig
    from jaxlm.research.desk.desk import Desk
    from jaxlm.research.desk.records import Seat
    from jaxlm.research.desk.views import DraftView, ProposalView, StatusView
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
    _add_model_arguments(begin)
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


def add_seat_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who sits there")
    group.add_argument("--with", dest="seat", choices=("rules", "claude"), default="rules")
    _add_model_arguments(group)


def _add_model_arguments(parser: Any) -> None:
    parser.add_argument("--model", help="id of the model that --with claude asks")
    parser.add_argument("--usd-per-mtok", metavar="IN,OUT", help="its prices per million tokens")


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
            paths=checked_paths(args.patch_path or PATHS), seat=_seat(args, Seat()),
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
        return _ask_claude(args)
    rules = desk_of(args.project, offline.SEAT)
    found = offline.propose(rules, args.count)
    if not found:
        return _say("nothing left that was not tried; propose by hand, or with a model")
    print("\n".join(_listed(found)))
    return _say("next: jaxlm research draft")


def _listed(found: "Sequence[ProposalView]") -> Iterator[str]:
    """Proposals as a table, in their order."""
    from jaxlm.telemetry.readable import aligned, number

    head = (
        "proposal", "title", "changes", "effect expected", "holds it 9 times in 10", "a run costs",
        "gain per 1e15 FLOPs",
    )  # fmt: skip
    rows = [
        (
            p.id[:12], p.title, ", ".join(f"{k} = {v}" for k, v in p.changes.items()),
            f"{p.effect:+.4f}", f"{p.low:+.4f} to {p.high:+.4f}", f"{number(p.flops)}FLOPs",
            number(p.score),
        )
        for p in found
    ]  # fmt: skip
    return aligned([head, *rows])


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


def _ask_claude(args: argparse.Namespace) -> int:
    try:
        from jaxlm.research.seats import claude
    except ImportError as e:
        raise ConfigError(f"--with claude needs {e.name}: pip install 'jaxlm[research]'") from e
    from jaxlm.research.desk.records import Seat

    project = desk_of(args.project, "").standing().project
    assert project is not None
    seat = _seat(args, Seat(**project.get("seat", {})))
    task = (
        f"Propose at most {args.count} changes for this project, then make one draft of them. Look "
        "at its status, ledger, runs and findings first."
    )
    desk = desk_of(args.project, seat.model)
    ended = claude.sit(desk, task, seat, lambda text: print(text, end="", flush=True))
    print()
    left = desk.status().usd_left
    return _say(f"{ended.stop} after {ended.calls} calls, {ended.usd:.4f} USD; {left:.2f} left")


def _seat(args: argparse.Namespace, usual: "Seat") -> "Seat":
    """The project's, but for what is given.  Raises ConfigError for a model whose prices nobody told."""
    given: dict[str, Any] = {}
    if args.model and args.model != usual.model:
        given["model"] = args.model
        if not args.usd_per_mtok:
            raise ConfigError(
                f"--model {args.model} needs --usd-per-mtok IN,OUT: its prices keep the budget"
            )
    if args.usd_per_mtok:
        try:
            given["usd_per_mtok_in"], given["usd_per_mtok_out"] = map(
                float, args.usd_per_mtok.split(",")
            )
        except ValueError:
            raise ConfigError(
                f"--usd-per-mtok must be two numbers such as 5,25, got {args.usd_per_mtok!r}"
            ) from None
    return dataclasses.replace(usual, **given)


def _draft(args: argparse.Namespace, desk: "Desk") -> int:
    chosen = args.proposals
    if not chosen:
        asked = {name for d in desk.standing().drafts.values() for name in d["proposals"]}
        chosen = [p["id"] for p in desk.ledger.of_kind("proposal") if p["id"] not in asked]
    if not chosen:
        raise RunError("no open proposals; `jaxlm research propose` makes some")
    titles = ", ".join(p["title"] for p in desk.find_proposals(chosen))
    made = desk.draft(list(chosen), args.hypothesis or f"one of these helps: {titles}", args.seeds)
    print("\n".join(_told(made)))
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
        print("\n".join(_told(next(d for d in desk.status().drafts if d.id == name))))
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
            print("\n".join([*_told(drafts[name]), *table(stages), ""]))
    return 0


def _status(args: argparse.Namespace, desk: "Desk") -> int:
    print("\n".join(_lines(desk.status())))
    return 0


def _report(args: argparse.Namespace, desk: "Desk") -> int:
    from jaxlm.research.desk.report import write_report

    return _say("report: " + ", ".join(map(str, write_report(desk, args.project))))


def _lines(status: "StatusView") -> list[str]:
    from jaxlm.telemetry.readable import number

    lines = [
        f"config    {' '.join([*status.config, *status.overrides])}",
        f"adopted   {', '.join(status.adopted) or 'nothing yet'}",
        f"left      {number(status.flops_left)}FLOPs, {status.usd_left:.2f} USD, {status.hours_left:.1f} h",
    ]
    if status.is_halted:
        lines.append("HALTED    nothing starts; jaxlm research resume")
    for draft in status.drafts:
        lines += _told(draft)
    return lines


def _told(draft: "DraftView") -> list[str]:
    from jaxlm.telemetry.readable import number

    lines = [
        f"{draft.id[:12]}  {draft.state:9s} {', '.join(draft.arms)}; {draft.seeds} seeds, at most "
        f"{number(draft.flops)}FLOPs"
    ]
    lines += [f"              {problem}" for problem in draft.problems]
    if draft.kept:
        lines.append(f"              kept: {', '.join(draft.kept)}")
    return lines


def _say(text: str) -> int:
    sys.stdout.write(text + "\n")
    return 0
