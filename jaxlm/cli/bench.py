# SPDX-License-Identifier: Apache-2.0
"""`jaxlm bench step | loop | loader | start | kernels`: figures with the command that made them."""

import argparse
import os
import platform
import shlex
import sys

from jaxlm.cli.common import add_config_arguments, add_device_arguments, set_up_devices
from jaxlm.core.errors import ConfigError

WHAT = {
    "step": "the bare jitted step: tokens/s, share of the machine's matrix limit, where time goes",
    "loop": "the real loop as a share of the bare step, and recompilations",
    "loader": "batches from disk: tokens/s",
    "start": "CPU time of --help; seconds to the first update, cold and warm",
    "kernels": "TPU kernels beside the public ones, predicted from the compiler's schedule (no config)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=WHAT, help="; ".join(f"{k}: {v}" for k, v in WHAT.items()))
    add_config_arguments(parser, nargs="*")
    parser.add_argument(
        "--steps", type=int, default=20, help="updates or batches (default %(default)s)"
    )
    group = parser.add_argument_group("kernels", "each a comma-separated list; default: all")
    for what in ("shapes", "chips", "kernels"):
        group.add_argument(f"--{what}", type=lambda text: text.split(","), metavar="NAME,...")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.what == "kernels":
        return _run_kernels(args)
    if not args.config:
        raise ConfigError(f"bench {args.what} needs a config, such as configs/tiny_decoder.gin")
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


def _run_kernels(args: argparse.Namespace) -> int:
    from jaxlm.bench.kernels import bench_kernels, choices, table
    from jaxlm.telemetry.display import make_display

    chosen = {}
    for what, allowed in choices().items():
        chosen[what] = getattr(args, what) or allowed
        if unknown := [name for name in chosen[what] if name not in allowed]:
            raise ConfigError(f"--{what}: unknown {unknown[0]!r}; allowed: {', '.join(allowed)}")
    with make_display() as display:
        rows = bench_kernels(**chosen, progress=display.progress)
    print("\n".join(table(rows)))
    return 0
