# SPDX-License-Identifier: Apache-2.0
"""`jaxlm data prepare | inspect | tokenize`: what a run would read."""

import argparse
import os
import sys

from jaxlm.cli.common import add_config_arguments
from jaxlm.core.checks import require
from jaxlm.data.config import DataConfig
from jaxlm.data.prepared import PreparedData
from jaxlm.train.config import MOST_STEPS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    prepare = verbs.add_parser(
        "prepare", help="train the tokenizer, tokenise and pack, or reuse it"
    )
    inspect = verbs.add_parser(
        "inspect", help="show rows of a batch as text: | edge of a document, … cut"
    )
    tokenize = verbs.add_parser("tokenize", help="show how a text is cut into tokens")
    for verb in (prepare, inspect, tokenize):
        add_config_arguments(verb)
    inspect.add_argument("--step", type=int, default=0, help="of which batch (default %(default)s)")
    inspect.add_argument("--rows", type=int, default=2, help="how many rows (default %(default)s)")
    tokenize.add_argument("--text", help="the text (default: standard input)")


def run(args: argparse.Namespace) -> int:
    from jaxlm.cli.gin_edge import load
    from jaxlm.data.prepare import prepare
    from jaxlm.telemetry.display import make_display

    config = load(args.config, args.overrides).data
    if args.verb == "inspect":
        last = MOST_STEPS - 1  # batch of the longest run
        require(0 <= args.step <= last, "--step", args.step, f"between 0 and {last}")
        require(args.rows >= 1, "--rows", args.rows, ">= 1")
    display = make_display()
    with display:
        data = prepare(config, progress=display.progress)
    for notice in data.notices:
        display.note(notice)
    if args.verb == "prepare":
        for row in data.describe():
            cells = {
                name: f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
                for name, value in row.items()
                if not isinstance(value, str)
            }
            display.table(f"{row['corpus']} {row['split']}", cells)
        print(f"data id {data.data_id[:16]}, tokenizer {data.tokenizer_path}")
    elif args.verb == "inspect":
        _inspect(args, config, data)
    else:
        _tokenize(args, data)
    return 0


def _inspect(args: argparse.Namespace, config: DataConfig, data: PreparedData) -> None:
    from jaxlm.data.inspection import segments_of
    from jaxlm.data.loader import BatchSource
    from jaxlm.data.tokenizer import load_tokenizer

    rows = slice(0, min(args.rows, config.batch_size))
    batch = BatchSource(data, config).batch(args.step, rows)
    for segment in segments_of(batch, load_tokenizer(data.tokenizer_path)):
        edges = ("|" if segment.starts_document else "…"), ("|" if segment.ends_document else "…")
        print(
            f"row {segment.row} [{segment.begin}:{segment.end}] {edges[0]}{segment.text!r}{edges[1]}"
        )


def _tokenize(args: argparse.Namespace, data: PreparedData) -> None:
    from jaxlm.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(data.tokenizer_path)
    raw = sys.stdin.buffer.read() if args.text is None else os.fsencode(args.text)
    ids = tokenizer.encode_bytes(raw)
    for i in ids:
        print(f"{i:6d}  {tokenizer.decode_bytes([i])!r}")
    print(f"{len(raw)} bytes, {len(ids)} tokens, {len(raw) / max(len(ids), 1):.2f} bytes per token")
