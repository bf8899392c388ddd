# SPDX-License-Identifier: Apache-2.0
"""`jaxlm dash`: a live page over runs and ledger, for a browser on this machine."""

import argparse
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.core.errors import ConfigError

if TYPE_CHECKING:
    from jaxlm.dash.doors import Doors

RUNS, PROJECT = Path("runs"), Path("research")  # looked at unless others are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=Path, nargs="+", metavar="DIR",
        help=f"folders of runs, or runs (default {RUNS}, and the project's)",
    )  # fmt: skip
    parser.add_argument("--project", type=Path, help=f"ledger and runs (default {PROJECT})")
    parser.add_argument("--port", type=int, default=8420, help="0: any (default %(default)s)")
    parser.add_argument(
        "--read-only", action="store_true", help="without the buttons that a person presses"
    )


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.port < 1 << 16:
        raise ConfigError(f"--port must be in 0..65535, got {args.port}; 0 takes any free one")
    for path in [*(args.runs or []), *([args.project] if args.project else [])]:
        if not path.is_dir():
            raise ConfigError(f"{path} is no folder; name one that holds runs, or a project")
    project = args.project or PROJECT
    folders = [*(args.runs or [RUNS]), project / "runs"]
    if not any(folder.is_dir() for folder in folders):
        raise ConfigError(
            f"neither {RUNS} nor {PROJECT} is here; `jaxlm train` makes the first run, "
            "or name a folder of runs with --runs"
        )
    from jaxlm.cli.desk import desk_of
    from jaxlm.dash.house import House
    from jaxlm.dash.server import Server

    doors = _doors(args.read_only)
    house = House(folders, project, lambda: desk_of(project, "dash"), doors)
    with Server(house, args.port) as server:
        print(f"{server.url}  Ctrl-C ends it", flush=True)
        if doors.link is not None:
            doors.tell(f"to approve from the page, open it once as\n  {server.url}#{doors.link}")
        threading.Thread(target=house.watch, daemon=True).start()
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
    return 0


def _doors(is_read_only: bool) -> "Doors":
    from jaxlm.dash import doors

    if is_read_only:
        return doors.Doors(None, why_shut="it was started with --read-only")
    try:
        return doors.Doors(doors.terminal())
    except OSError:
        return doors.Doors(None)
