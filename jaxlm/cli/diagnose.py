# SPDX-License-Identifier: Apache-2.0
"""`jaxlm diagnose RUN`: what is wrong with a run, from its telemetry and config, with evidence."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run, finished or not")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RUN",
        help="another run to compare with, such as an earlier one",
    )
    parser.add_argument("--json", action="store_true", help="findings as JSON, for programs")


def run(args: argparse.Namespace) -> int:
    from jaxlm.research.diagnose.readable import as_json, page
    from jaxlm.research.diagnose.run import examine
    from jaxlm.research.diagnose.telemetry import read_telemetry
    from jaxlm.research.diagnose.verify import verify

    telemetry = read_telemetry(args.run, args.against)
    findings = examine(telemetry)
    problems = verify(findings, args.run, args.against)
    if args.json:
        print(json.dumps(as_json(findings, problems), indent=2))
        return 0
    print("\n".join(page(args.run.resolve().name, telemetry, findings, problems)))
    return 0
