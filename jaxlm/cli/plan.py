# SPDX-License-Identifier: Apache-2.0
"""`jaxlm plan CONFIG --topology v6e:16x16`: memory, work and predicted time before anyone rents it."""

import argparse
import json
import sys
from pathlib import Path

from jaxlm.cli.common import add_config_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE",
        help="v5e, v5p, v6e, tpu7x or h100, h200: v6e:16x16, v5p:4x4x4, h100:8",
    )  # fmt: skip
    parser.add_argument(
        "--analytic", action="store_true", help="by arithmetic alone, without compiling"
    )
    parser.add_argument("--price", type=float, metavar="X", help="of a chip-hour, for the cost")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all numbers there ('-': print)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when the plan fits, 1 when it does not."""
    from jaxlm.cli.gin_edge import load
    from jaxlm.plan.advice import changes
    from jaxlm.plan.answer import as_json, make_plan
    from jaxlm.plan.text import screen
    from jaxlm.plan.topology import parse_topology
    from jaxlm.telemetry.display import make_display

    topology = parse_topology(args.topology)
    config = load(args.config, args.overrides)
    name = Path(args.config[-1]).stem
    plan = make_plan(name, config, topology, None)
    to_stdout = args.json == Path("-")
    if not args.analytic:
        if not to_stdout:
            print(screen(plan, changes(plan), args.price), flush=True)
            print(flush=True)
        with make_display(stream=sys.stderr) as display:
            plan = make_plan(name, config, topology, display.progress)
    if not to_stdout:
        print(screen(plan, changes(plan), args.price))
    if args.json:
        text = json.dumps(as_json(plan, args.price), indent=1) + "\n"
        print(text, end="") if to_stdout else args.json.write_text(text, encoding="utf-8")
    return 0 if plan.fits else 1
