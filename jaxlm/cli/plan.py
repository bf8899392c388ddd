# SPDX-License-Identifier: Apache-2.0
"""`jaxlm plan CONFIG --topology v6e:16x16`: memory, work and predicted time before anyone rents it."""

import argparse
import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from jaxlm.cli.common import add_config_arguments, check_outputs
from jaxlm.core.errors import ConfigError

SCREEN = Path("-")  # as the name of a file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE",
        help="v5e, v5p, v6e, tpu7x or h100, h200: v6e:16x16, v5p:4x4x4, h100:8; two slices: v6e:16x16:2",
    )  # fmt: skip
    parser.add_argument(
        "--analytic", action="store_true", help="by arithmetic alone, without compiling"
    )
    parser.add_argument(
        "--compare", action="store_true", help="two configs side by side, not one over the other"
    )
    parser.add_argument(
        "--search", type=int, nargs="?", const=6, metavar="N",
        help="compile the N most promising meshes, micro-batches and remat policies (6)",
    )  # fmt: skip
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="write the executable there (train --executable)"
    )
    parser.add_argument("--price", type=float, metavar="X", help="of a chip-hour, for the cost")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all numbers there ('-': print them alone)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts there")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when the plan fits, 1 when it does not."""
    from jaxlm.cli.gin_edge import load
    from jaxlm.plan.topology import parse_topology

    topology = parse_topology(args.topology)
    _check(args)
    if args.compare:
        return _compare(args, topology)
    config = load(args.config, args.overrides)
    name = Path(args.config[-1]).stem
    return (_plan if args.search is None else _search)(args, name, config, topology)


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError for options that are out of range or would be passed over in silence."""
    if args.compare and len(args.config) != 2:
        raise ConfigError(f"--compare needs two configs, got {len(args.config)}")
    if args.search is not None and args.search < 1:
        raise ConfigError(f"--search must be >= 1, got {args.search}")
    if args.price is not None and not args.price >= 0:
        raise ConfigError(f"--price must be >= 0, got {args.price:g}")
    if args.price == math.inf:
        raise ConfigError("--price must be finite, got inf")
    for mode, others in (
        ("compare", ("search", "save", "html")),
        ("search", ("analytic", "save", "html")),
        ("analytic", ("save",)),
    ):
        given = [name for name in others if getattr(args, name)]
        if getattr(args, mode) and given:
            raise ConfigError(f"--{given[0]} does not go with --{mode}; leave one of them out")
    check_outputs(None if args.json == SCREEN else args.json, args.html, args.save)


def _plan(args: argparse.Namespace, name: str, config: Any, topology: Any) -> int:
    from jaxlm.plan.advice import changes
    from jaxlm.plan.answer import as_json, make_plan
    from jaxlm.plan.page import plan_page
    from jaxlm.plan.text import screen
    from jaxlm.telemetry.display import make_display
    from jaxlm.telemetry.page import write_page

    plan = make_plan(name, config, topology, None)
    is_quiet = args.json == SCREEN
    if not args.analytic:
        if not is_quiet:
            with contextlib.suppress(OSError):  # the end will tell, when the files are written
                _say(screen(plan, changes(plan), args.price) + "\n")
        with make_display(stream=sys.stderr) as display:
            plan = make_plan(name, config, topology, display.progress, args.save)
    if args.json:
        _write_json(args.json, as_json(plan, args.price))
    if args.html:
        write_page(args.html, plan_page(plan, changes(plan), args.price))
    if not is_quiet:
        _say(screen(plan, changes(plan), args.price))
    return 0 if plan.fits else 1


def _compare(args: argparse.Namespace, topology: Any) -> int:
    from jaxlm.cli.gin_edge import load
    from jaxlm.plan.answer import as_json, make_plan
    from jaxlm.plan.compare import table
    from jaxlm.telemetry.display import make_display

    configs = [(Path(path).stem, load([path], args.overrides)) for path in args.config]
    with make_display(stream=sys.stderr) as display:
        progress = None if args.analytic else display.progress
        plans = [make_plan(name, config, topology, progress) for name, config in configs]
    if args.json:
        _write_json(args.json, [as_json(plan, args.price) for plan in plans])
    if args.json != SCREEN:
        _say("\n".join(table(plans[0], plans[1], args.price)))
    return 0 if all(plan.fits for plan in plans) else 1


def _search(args: argparse.Namespace, name: str, config: Any, topology: Any) -> int:
    from jaxlm.plan.answer import as_json
    from jaxlm.plan.search import search, table
    from jaxlm.telemetry.display import make_display

    with make_display(stream=sys.stderr) as display:
        found = search(name, config, topology, args.search, display.progress)
    if args.json:
        rows = [{"what": one.what} | as_json(plan, args.price) for one, plan in found]
        _write_json(args.json, rows)
    if args.json != SCREEN:
        _say(f"{name} on {topology.name}: {len(found)} ways, all predicted; * on the Pareto front")
        _say("\n".join(table(found)))
    return 0 if found[0][1].fits else 1


def _say(text: str) -> None:
    """Prints, for whoever still reads: files and the exit code are owed all the same."""
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1)
    if path == SCREEN:
        _say(text)
    else:
        path.write_text(text + "\n", encoding="utf-8")
