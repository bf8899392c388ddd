# SPDX-License-Identifier: Apache-2.0
"""`jaxlm ablate CONFIG --vary FIELD=[A,B]`: does a change help, by how much, and how sure is that?"""

import argparse
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.cli.common import add_config_arguments
from jaxlm.config import RunConfig, resolve
from jaxlm.core.errors import ConfigError

if TYPE_CHECKING:
    from jaxlm.research.campaign import Setting

UNITS = ("flops", "tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--vary", action="append", default=[], metavar="FIELD=[A,B]", required=True,
        help="values to try against the config as it is, e.g. OptimConfig.peak_lr=[1e-3,2e-3]; "
        "given again, all combinations",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=4, help="of each arm (default %(default)s)")
    parser.add_argument(
        "--budget", metavar="N(flops|tokens)", help="of all runs together, e.g. 2e15flops"
    )
    parser.add_argument(
        "--smallest-effect", type=float, default=0.0, metavar="X",
        help="in units of the metric: a gain below it is not worth keeping (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--metric", default="eval/bpb", help="(default %(default)s)")
    parser.add_argument("--hypothesis", default="", help="what you expect, in words; kept")
    parser.add_argument(
        "--project",
        type=Path,
        default=Path("research"),
        help="ledger and runs (default %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes side by side (default %(default)s)"
    )
    parser.add_argument(
        "--how", choices=("auto", "in turn", "together"), default="auto",
        help="runs of one shape: one after the other, or vmapped into one program "
        "(default: in turn on a CPU)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the protocol, train nothing")


def run(args: argparse.Namespace) -> int:
    from jaxlm.research.ablation_page import write_ablation
    from jaxlm.research.campaign import Rules, conclude, dump, execute, plan
    from jaxlm.research.ledger import Ledger
    from jaxlm.research.review import review, table
    from jaxlm.telemetry.display import make_display

    if args.seeds < 1:
        raise ConfigError(f"--seeds must be >= 1, got {args.seeds}")
    if args.workers < 1:
        raise ConfigError(f"--workers must be >= 1, got {args.workers}")
    settings = _settings(args)
    base = settings[0].config
    flops = _budget(args.budget, base)
    rules = Rules(
        metric=args.metric, smallest_effect=args.smallest_effect, hypothesis=args.hypothesis
    )
    display = make_display()
    with display:
        planned = plan(settings, args.seeds, flops, rules, args.project, display.progress)
        if args.dry_run:
            print(dump(planned))
            return 0
        records = execute(
            planned, args.project, "the command's user", display.progress, args.workers, args.how
        )
    ledger = Ledger(args.project / "ledger.jsonl")
    found = review(planned.protocol, records, ledger)
    conclude(ledger, found)
    page = write_ablation(planned.protocol, found, records, args.project)
    print("\n".join(table(planned.protocol, found)))
    print(f"report: {page}")
    return 0


def _settings(args: argparse.Namespace) -> list["Setting"]:
    """The baseline, then every combination of the varied values that is not the baseline."""
    from jaxlm.cli.gin_edge import load
    from jaxlm.research.campaign import Setting
    from jaxlm.research.records import BASELINE

    base = load(args.config, args.overrides)
    settings = [Setting(BASELINE, {}, base)]
    fields = [_split(text) for text in args.vary]
    for values in itertools.product(*(values for _, values in fields)):
        changes = dict(zip((field for field, _ in fields), values, strict=True))
        texts = [f"{field} = {value}" for field, value in changes.items()]
        config = load(args.config, [*args.overrides, *texts])
        name = ", ".join(f"{field.rpartition('.')[2]}={value}" for field, value in changes.items())
        if config.config_id == base.config_id:
            settings[0] = Setting(BASELINE, changes, base)
        else:
            settings.append(Setting(name, changes, config))
    return settings


def _split(text: str) -> tuple[str, list[str]]:
    """("OptimConfig.peak_lr", ["1e-3", "2e-3"]): gin expressions, cut at commas outside of brackets."""
    field, equals, values = text.partition("=")
    values = values.strip()
    if not equals or not values.startswith("[") or not values.endswith("]"):
        raise ConfigError(f"--vary {text!r}: write FIELD=[A,B], such as OptimConfig.peak_lr=[1e-3]")
    parts, depth, quote = [""], 0, ""
    for char in values[1:-1]:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    parts = [part.strip() for part in parts if part.strip()]
    if not parts:
        raise ConfigError(f"--vary {text!r} names no value")
    return field.strip(), parts


def _budget(text: str | None, config: RunConfig) -> float | None:
    """In FLOPs; tokens are counted at the baseline's cost."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?\d+)?)\s*([a-z]+)", text.strip().lower())
    if match is None or match[2] not in UNITS:
        raise ConfigError(f"--budget {text!r}: write a number and {' or '.join(UNITS)}")
    amount = float(match[1])
    return amount if match[2] == "flops" else amount * resolve(config, 1).train_flops_per_token
