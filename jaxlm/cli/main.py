# SPDX-License-Identifier: Apache-2.0
"""`jaxlm`: one small file per command, imported only when it is asked for."""

import argparse
import contextlib
import errno
import importlib
import io
import os
import re
import sys
from typing import NoReturn

from jaxlm.core.errors import ConfigError, UserError, way_out
from jaxlm.core.typed import nearest

COMMANDS = {  # name -> what `jaxlm --help` says; the code is jaxlm/cli/<name>.py
    "train": "train a model, or go on with a stopped run",
    "eval": "bits per byte of a run's newest checkpoint on its validation text",
    "generate": "continue a text with a trained model",
    "data": "prepare, look into or tokenise text",
    "plan": "memory, work and predicted time on a TPU slice or GPUs that are not here",
    "diagnose": "what is wrong with a run: causes, with evidence that can be computed again",
    "ablate": "try changes over several seeds: a verdict for each, with an interval",
    "research": "the loop: propose, draft, approve, run, adopt; and the ledger of all that was tried",
    "dash": "a live page over runs and ledger, with a button that a person presses",
    "mcp": "the research desk for an MCP client such as Claude Code",
    "bench": "measure speed, kernels, policies, verdicts, diagnosis and defences",
}

DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip

EPILOG = """\
begin with:   jaxlm train configs/tiny_stdlib.gin
then:         jaxlm generate runs/tiny_stdlib "import "
every knob is a config field: jaxlm train CONFIG --set OptimConfig.peak_lr=3e-4
"""


NUMBERS = re.compile(r"-[\d.]+(e[-+]?\d+)?,", re.IGNORECASE)  # a list whose first is negative


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as every other one is reported: in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    0; 1 where the answer is no (plan, bench); 2 a user's mistake; 3 diverged; 75 stopped; 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    _make_output_safe()
    try:
        args = _parse(argv)
        code = args.execute(args)
        with contextlib.suppress(BrokenPipeError):  # all is done, whoever reads the last of it
            sys.stdout.flush()
        return code
    except UserError as e:
        return _fail(argv, e, str(e), e.exit_code)
    except BrokenPipeError:  # whoever read our output has gone
        return 0
    except OSError as e:
        if e.errno not in DISK_ERRORS:
            raise
        place = e.filename or "the disk or the output"
        return _fail(
            argv, e, f"{place}: {e.strerror}; {way_out(e)}, then give the same command again", 2
        )
    except KeyboardInterrupt:
        return _fail(argv, None, "interrupted", 130)
    finally:
        _drop_unwritable_output()


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="jaxlm",
        description="Pretrain language models: from text to a trained model, on a laptop or a mesh.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback for mistakes too")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in argv if not word.startswith("-")), None)
    if asked is not None and asked not in COMMANDS:
        raise ConfigError(f"unknown command {asked!r}; {nearest(asked, COMMANDS)}")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == asked:
            module = importlib.import_module(f"jaxlm.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(execute=module.run)
    # argparse takes -0.02,-0.04,0 for an option, but nothing with a blank
    lists = {f" {word}": word for word in argv if NUMBERS.match(word)}
    words = [f" {word}" if f" {word}" in lists else word for word in argv]
    args, unknown = parser.parse_known_args(words)
    for name, value in vars(args).items():
        if isinstance(value, str):  # a prompt may look like a list, and is continued as it is
            setattr(args, name, lists.get(value, value))
    # argparse passes over a list that stands behind options
    if getattr(args, "config", None) == []:
        args.config = [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        flags = set(re.findall(r"--[a-z-]+", commands.choices[args.command].format_help()))
        hint = nearest(unknown[0].partition("=")[0], flags)
        raise ConfigError(f"jaxlm {args.command} has no argument {unknown[0]!r}; {hint}")
    return args


def _make_output_safe() -> None:
    """No text, however odd, and no closed output ends a command."""
    if sys.stdout is None:  # started with >&-
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _drop_unwritable_output() -> None:
    """What a broken output still holds goes nowhere, or the interpreter would complain at its end."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(argv: list[str], error: BaseException | None, line: str, code: int) -> int:
    if "--debug" in argv and error is not None:
        raise error
    with contextlib.suppress(OSError):  # nobody reads it: the code still tells
        print(f"jaxlm: error: {' '.join(line.splitlines())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
