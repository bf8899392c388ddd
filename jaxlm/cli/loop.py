# SPDX-License-Identifier: Apache-2.0
"""`jaxlm research loop CONFIG`: diagnosis to adoption, round after round, then a trial at a larger size."""

import argparse
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxlm.cli.common import add_config_arguments
from jaxlm.core.errors import ConfigError
from jaxlm.telemetry.readable import aligned

if TYPE_CHECKING:
    from jaxlm.research.desk.desk import Desk

HELP = "go round by itself, inside an envelope that you sign; then a trial at a larger size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    say = lambda text: f"{text} (default %(default)s)"
    number = lambda name, default, text: parser.add_argument(
        name, type=int, default=default, metavar="N", help=say(text)
    )
    number("--rounds", 3, "drafts, each from a new diagnosis")
    number("--arms", 4, "of each draft")
    number("--seeds", 3, "of each arm, and as many fresh ones of what is kept")
    parser.add_argument(
        "--smallest-effect", type=float, default=0.005, metavar="X",
        help=say("bits per byte worth keeping"),
    )  # fmt: skip
    parser.add_argument(
        "--widths", default="0.5,1,1.5,2", metavar="A,B,...",
        help=say("of the trial, times the config's; the last is forecast from the others"),
    )  # fmt: skip
    number("--ladder-seeds", 3, "at each of the widths it is forecast from")
    number("--trial-seeds", 5, "at the last width")
    parser.add_argument(
        "--hours", type=float, default=2.0, metavar="X", help=say("that the envelope holds")
    )
    number("--workers", 1, "processes side by side")


def run(args: argparse.Namespace) -> int:
    from jaxlm.cli.desk import desk_of
    from jaxlm.cli.gin_edge import load
    from jaxlm.research import loop
    from jaxlm.research.desk import fields
    from jaxlm.research.desk.records import Project
    from jaxlm.research.desk.report import write_report
    from jaxlm.research.launch import Workers
    from jaxlm.research.seats import offline
    from jaxlm.telemetry.display import make_display

    terms = loop.Terms(
        rounds=args.rounds, arms=args.arms, seeds=args.seeds, smallest_effect=args.smallest_effect,
        widths=_widths(args.widths), ladder_seeds=args.ladder_seeds, trial_seeds=args.trial_seeds,
    )  # fmt: skip
    if not 0 < args.hours < math.inf:
        raise ConfigError(f"--hours must be above 0, got {args.hours:g}")
    Workers(args.workers)  # refuses a number below 1
    changed = lambda changes: load(
        args.config,
        [*args.overrides, *(t for k, v in changes.items() for t in fields.statements({k: v}))],
    )
    most = loop.most_flops(changed({}), changed, terms)
    project = Project(
        config=tuple(args.config), overrides=tuple(args.overrides), promote=(), max_flops=most,
        max_usd=0.0, max_hours=args.hours,
    )  # fmt: skip
    if not loop.begin(desk_of(args.project, offline.SEAT), project, terms, args.hours):
        print("left as it was: nothing was run")
        return 0
    with make_display() as display:
        desk = desk_of(args.project, offline.SEAT, workers=args.workers, progress=display.progress)
        loop.go_on(desk, terms, display.note)
    print("\n".join(_table(desk)))
    print("report: " + ", ".join(map(str, write_report(desk, args.project))))
    return 0


def _widths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--widths must be numbers such as 0.5,1,1.5,2, got {text!r}") from None


def _table(desk: "Desk") -> Iterator[str]:
    """Adopted changes with their confirmed effects, then the trial beside its forecast."""
    verdicts = {
        (r["protocol"], v["arm"]): v for r in desk.ledger.of_kind("review") for v in r["verdicts"]
    }
    outcomes = {o["draft"]: o for o in desk.ledger.of_kind("outcome")}
    rows: list[tuple[str, ...]] = [("adopted", "effect on fresh seeds", "95% interval")]
    for adoption in desk.standing().adopted:
        v = verdicts[outcomes[adoption["draft"]]["protocols"][-1], adoption["arm"]]
        rows.append(
            (adoption["arm"], f"{v['effect']:+.4f}", f"{v['low']:+.4f} to {v['high']:+.4f}")
        )
    yield ""
    yield from aligned(rows)
    forecasts = {f["protocol"]: f for f in desk.ledger.of_kind("forecast")}
    for score in desk.ledger.of_kind("score"):
        yield from ("", *_trial(score, forecasts[score["protocol"]]))


def _trial(score: dict[str, Any], forecast: dict[str, Any]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        ("at the largest width", "forecast before", "came out", "covered")
    ]
    for name, told in forecast["expected"].items():
        rows.append(
            (
                name,
                f"{told['median']:.4f} ({told['low']:.4f} to {told['high']:.4f})",
                f"{score['outcomes'][name]:.4f}",
                "yes" if score["covered"][name] else "NO",
            )
        )
    yield from aligned(rows)
    high = "unknown" if score["high"] is None else f"{score['high']:.3f}"
    is_clear = score["high"] is not None and not score["low"] <= 1 <= score["high"]
    yield (
        f"tokens to the baseline's final loss: {score['ratio']:.3f} of the baseline's, 95% interval "
        f"{score['low']:.3f} to {high} over {len(score['pairs'])} fresh seeds, which "
        f"{'excludes' if is_clear else 'DOES NOT exclude'} 1"
    )
