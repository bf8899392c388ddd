# SPDX-License-Identifier: Apache-2.0
"""`jaxlm bench step | loop | loader | start`: figures with the command that made them."""

import argparse
import os
import platform
import shlex
import sys

from jaxlm.cli.common import add_config_arguments, add_device_arguments, set_up_devices

WHAT = {
    "step": "the bare jitted step: tokens/s, share of the machine's matrix limit, where time goes",
    "loop": "the real loop as a share of the bare step, and recompilations",
    "loader": "batches from disk: tokens/s",
    "start": "CPU time of --help; seconds to the first update, cold and warm",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=WHAT, help="; ".join(f"{k}: {v}" for k, v in WHAT.items()))
    add_config_arguments(parser)
    parser.add_argument(
        "--steps", type=int, default=20, help="updates or batches (default %(default)s)"
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from jaxlm.cli.gin_edge import load
    from jaxlm.telemetry.display import make_display

    config = load(args.config, args.overrides)
    if args.what == "start":
        from jaxlm.bench.start import bench_start

        table = bench_start(args.config, args.overrides)
    elif args.what == "loader":
        from jaxlm.bench.loader import bench_loader

        table = bench_loader(config, args.steps)
    else:
        set_up_devices(args)
        if args.what == "step":
            from jaxlm.bench.step import bench_step

            table = bench_step(config, args.steps)
        else:
            from jaxlm.bench.loop import bench_loop

            table = bench_loop(config, args.steps)
    from jaxlm.train.code_id import code_id

    table |= {
        "command": shlex.join(["jaxlm", *sys.argv[1:]]),
        "commit": code_id()["commit"] or "not a git checkout",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
    }
    make_display().table(f"bench {args.what}", table)
    return 0
