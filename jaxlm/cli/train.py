# SPDX-License-Identifier: Apache-2.0
"""`jaxlm train CONFIG`: train a model; the same command again goes on with a stopped run."""

import argparse
import os
import sys
from pathlib import Path

from jaxlm.cli.common import add_config_arguments, add_device_arguments, set_up_devices

STOPPED = 75  # "try again later" in sysexits.h: schedulers may restart the same command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--run",
        type=Path,
        dest="run_dir",
        metavar="DIR",
        help="run directory (runs/<config's name>)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check and print the numbers, train nothing"
    )
    parser.add_argument(
        "--executable", type=Path, metavar="FILE", help="take the step that jaxlm plan --save wrote"
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when completed, 75 when stopped and to be continued."""
    from jaxlm.cli.gin_edge import load

    config = load(args.config, args.overrides)  # a mistake ends here, before jax is imported
    run_dir = args.run_dir or Path("runs") / Path(args.config[-1]).stem
    set_up_devices(args)

    import jax

    from jaxlm.config import resolve
    from jaxlm.telemetry.display import make_display
    from jaxlm.train.session import (
        describe,
        describe_kernels,
        describe_memory,
        run_training,
        summary_table,
    )

    stream = sys.stdout if jax.process_index() == 0 else open(os.devnull, "w")
    display = make_display(config.train.log_every, stream)
    load_step = None
    if args.executable:
        from jaxlm.plan.executable import open_step

        load_step = open_step(config, args.executable)
    if args.dry_run:
        resolved = resolve(config, jax.device_count())
        display.table("run", describe(resolved) | describe_kernels(config))
        display.table("memory, over all devices", describe_memory(config))
        return 0
    gin_text = "".join(Path(p).read_text(encoding="utf-8") for p in args.config)
    gin_text += "".join(f"\n{text}" for text in args.overrides)
    summary = run_training(config, run_dir, gin_text, display, load_step=load_step)
    display.table(str(run_dir), summary_table(summary) | {"report": str(run_dir / "report.html")})
    if summary["status"] == "completed":
        return 0
    print(
        f"stopped after update {summary['step']}; the same command goes on from there",
        file=sys.stderr,
    )
    return STOPPED
