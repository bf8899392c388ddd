# SPDX-License-Identifier: Apache-2.0
"""`jaxlm`: one small file per command, imported only when it is asked for."""

import argparse
import errno
import importlib
import os
import sys

from jaxlm.core.errors import UserError

COMMANDS = {  # name -> what `jaxlm --help` says; the code is jaxlm/cli/<name>.py
    "train": "train a model, or go on with a stopped run",
    "eval": "bits per byte of a run's newest checkpoint on its validation text",
    "generate": "continue a text with a trained model",
    "data": "prepare, look into or tokenise text",
    "bench": "measure the loop, the step, the loader and the start",
}

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO}

EPILOG = """\
begin with:   jaxlm train configs/tiny_stdlib.gin
then:         jaxlm generate runs/tiny_stdlib "import "
every knob is a config field: jaxlm train CONFIG --set OptimConfig.peak_lr=3e-4
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 2 for a user's mistake, 3 diverged, 75 stopped."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="jaxlm",
        description="Pretrain language models: from text to a trained model, on a laptop or a mesh.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback for mistakes too")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == asked:
            module = importlib.import_module(f"jaxlm.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(execute=module.run)
    args = parser.parse_args(argv)
    try:
        return args.execute(args)
    except UserError as e:
        return _fail(args, e, str(e), e.exit_code)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if e.errno not in DISK_ERRORS:
            raise
        return _fail(args, e, f"{e.filename or 'disk'}: {e.strerror}; make room or choose another place", 2)
    except KeyboardInterrupt:
        return _fail(args, None, "interrupted", 130)


def _fail(args: argparse.Namespace, error: BaseException | None, line: str, code: int) -> int:
    if args.debug and error is not None:
        raise error
    print(f"jaxlm: error: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
