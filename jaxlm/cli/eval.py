# SPDX-License-Identifier: Apache-2.0
"""`jaxlm eval RUN`: bits per byte on the validation text of the run's corpora."""

import argparse
import json
import sys
from pathlib import Path

from jaxlm.cli.common import add_device_arguments, set_up_devices
from jaxlm.core.errors import RunError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN", help="run directory that `jaxlm train` made"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    set_up_devices(args)

    from jaxlm.data.loader import BatchSource
    from jaxlm.data.prepare import prepare
    from jaxlm.telemetry.display import make_display
    from jaxlm.train.restore import restore_run
    from jaxlm.train.setup import on_mesh
    from jaxlm.train.validate import validate

    trained = restore_run(args.run_dir)
    if trained.notice:
        print(trained.notice, file=sys.stderr)
    data = prepare(trained.config.data)
    if trained.data_id not in (None, data.data_id):
        raise RunError(
            f"{args.run_dir} was trained on other data (id {trained.data_id[:12]}, now "
            f"{data.data_id[:12]}): the text changed, or what it is tokenised and packed by; "
            "give back the text of its config.json to evaluate it"
        )
    source = BatchSource(data, trained.config.data, split="valid")
    with on_mesh(trained.trainer.mesh, trained.trainer.rules):
        metrics = validate(trained.trainer, trained.params, source)
    if args.json:
        print(json.dumps({"step": trained.step, **metrics}))
    else:
        rows = {name: f"{value:,.4f}" for name, value in metrics.items()}
        make_display().table(f"{args.run_dir} after update {trained.step}", rows)
    return 0
