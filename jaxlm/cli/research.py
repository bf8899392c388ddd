# SPDX-License-Identifier: Apache-2.0
"""`jaxlm research`: the loop's verbs (desk.py), and what a project has tried: log, show, verify.

`train` and `evaluate` are what `jaxlm ablate` starts its workers with.
"""

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.cli import desk, loop
from jaxlm.cli.common import add_device_arguments, set_up_devices
from jaxlm.core.errors import RunError
from jaxlm.core.parent import die_with

if TYPE_CHECKING:
    from jaxlm.research.ledger import Ledger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    log = verbs.add_parser("log", help="every record, a line each")
    show = verbs.add_parser("show", help="one record, whole")
    show.add_argument("seq", type=int, metavar="N", help="number of the record, as `log` prints it")
    verify = verbs.add_parser("verify", help="check every hash, and every run against its record")
    for verb in (log, show, verify):
        _add_project(verb)
    desk.add_verbs(verbs, _add_project)
    whole = verbs.add_parser("loop", help=loop.HELP)
    _add_project(whole)
    loop.add_arguments(whole)
    for name, text in (("train", "train the runs of a job"), ("evaluate", "judge them")):
        worker = verbs.add_parser(name, help=f"worker: {text}")
        worker.add_argument("job", type=Path)
        worker.add_argument("--controller", type=int, metavar="PID", help="ends when that ends")
        add_device_arguments(worker)


def _add_project(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--project", type=Path, default=Path("research"), help="folder (default %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    if args.verb in desk.VERBS:
        return desk.run(args)
    if args.verb == "loop":
        return loop.run(args)
    if args.verb in ("train", "evaluate"):
        if args.controller is not None:  # a new one will open the same run directories
            die_with(args.controller)
        set_up_devices(args)
        from jaxlm.research import worker
        from jaxlm.research.jobs import read_job

        {"train": worker.train, "evaluate": worker.evaluate}[args.verb](read_job(args.job))
        return 0
    from jaxlm.research.ledger import Ledger

    ledger = Ledger(args.project / "ledger.jsonl")
    if ledger.lines() == [b""] and not ledger.path.exists():
        raise RunError(
            f"{ledger.path} does not exist; `jaxlm ablate` begins one, or give --project"
        )
    if args.verb == "verify":
        return _verify(ledger, args.project)
    records = list(ledger)
    if args.verb == "log":
        from jaxlm.research.readable import line

        for record in records:
            when = datetime.fromtimestamp(record.time).strftime("%Y-%m-%d %H:%M")
            print(f"{record.seq:5d}  {when}  {record.kind:9s} {line(record)}")
        return 0
    if not 0 <= args.seq < len(records):
        there = f"0 to {len(records) - 1}" if records else "none yet"
        raise RunError(f"no record {args.seq}; {ledger.path} has {there}")
    record = records[args.seq]
    if record.kind == "patch":
        from jaxlm.research.desk.person import coloured

        print("\n".join(coloured(record.body["diff"], sys.stdout.isatty())))
        return 0
    print(json.dumps({"kind": record.kind, "hash": record.hash, **record.body}, indent=2))
    return 0


def _verify(ledger: "Ledger", project: Path) -> int:
    from jaxlm.research.verify import verify

    problems = verify(ledger, project)
    for problem in problems:
        print(problem)
    count = len(ledger.lines()) - 1
    print(f"{ledger.path}: {count} records, {len(problems) or 'no'} problem(s)")
    return 2 if problems else 0
