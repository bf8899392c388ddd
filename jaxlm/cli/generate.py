# SPDX-License-Identifier: Apache-2.0
"""`jaxlm generate RUN "text"`: continue a text, printed as it is drawn."""

import argparse
import sys
from pathlib import Path

from jaxlm.cli.common import add_device_arguments, set_up_devices
from jaxlm.core.errors import ConfigError
from jaxlm.train.config import MOST_SEED, MOST_TOKENS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN", help="run directory that `jaxlm train` made"
    )
    parser.add_argument("prompt", help='text to continue; "" begins a new document')
    parser.add_argument(
        "--tokens", type=int, default=200, help="at most so many (default %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: greedy (default %(default)s)"
    )
    parser.add_argument("--top-k", type=int, default=0, help="only the k likeliest tokens; 0: all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="only tokens that hold this probability"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default %(default)s)")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    for name, ok, allowed in (
        ("tokens", 1 <= args.tokens <= MOST_TOKENS, f"between 1 and {MOST_TOKENS}"),
        ("temperature", 0 <= args.temperature < float("inf"), ">= 0"),
        ("top-k", 0 <= args.top_k < 2**31, f"between 0 and {2**31 - 1}"),
        ("top-p", 0 < args.top_p <= 1, "above 0, at most 1"),
        ("seed", 0 <= args.seed <= MOST_SEED, f"between 0 and {MOST_SEED}"),
    ):
        if not ok:
            raise ConfigError(
                f"--{name} must be {allowed}, got {getattr(args, name.replace('-', '_'))}"
            )
    set_up_devices(args)

    import jax

    from jaxlm.data.tokenizer import StreamDecoder
    from jaxlm.generate import Generator, Sampling
    from jaxlm.train.restore import restore_run
    from jaxlm.train.setup import on_mesh

    trained = restore_run(args.run_dir)
    if trained.notice:
        print(trained.notice, file=sys.stderr)
    tokenizer = trained.tokenizer
    prompt = [tokenizer.separator_id, *tokenizer.encode(args.prompt)]
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    sys.stdout.write(args.prompt)
    with on_mesh(trained.trainer.mesh, trained.trainer.rules):
        generator = Generator(trained.trainer.model, len(tokenizer.bytes_per_token_V))
        tokens = generator.stream(
            trained.params, prompt, args.tokens, sampling, jax.random.key(args.seed),
            stop_id=tokenizer.separator_id,
        )  # fmt: skip
        decoder = StreamDecoder(tokenizer)
        for token in tokens:
            sys.stdout.write(decoder.push(token))
            sys.stdout.flush()
    print(decoder.flush())
    return 0
