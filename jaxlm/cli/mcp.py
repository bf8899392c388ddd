# SPDX-License-Identifier: Apache-2.0
"""`jaxlm mcp`: the research desk for any MCP client, over stdio or HTTP on this machine."""

import argparse
from pathlib import Path

from jaxlm.core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--project", type=Path, default=Path("research"), help="folder (default %(default)s)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="runs to read besides (default %(default)s)"
    )
    parser.add_argument(
        "--http", type=int, metavar="PORT", help="HTTP on 127.0.0.1; default: stdio"
    )
    parser.add_argument("--name", default="mcp client", help="who sits there, for the records")
    parser.add_argument("--workers", type=int, default=1, help="of `run` (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    from jaxlm.cli.desk import desk_of

    if args.http is not None and not 0 <= args.http <= 65535:
        raise ConfigError(f"--http must be in 0..65535, got {args.http}")
    try:
        from jaxlm.research.seats import server
    except ImportError as e:
        raise ConfigError(f"jaxlm mcp needs {e.name}: pip install 'jaxlm[research]'") from e

    desk = desk_of(args.project, args.name, (args.runs,), args.workers, lambda *news: None)
    desk.standing()
    server.serve(desk, args.http)
    return 0
