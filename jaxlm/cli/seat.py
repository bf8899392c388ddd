# SPDX-License-Identifier: Apache-2.0
"""Which model sits at the desk, at what price, and what it is asked (--with claude)."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from jaxlm.core.errors import ConfigError

if TYPE_CHECKING:
    from jaxlm.research.desk.desk import Desk
    from jaxlm.research.desk.records import Seat


def add_seat_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who sits there")
    group.add_argument("--with", dest="seat", choices=("rules", "claude"), default="rules")
    add_model_arguments(group)


def add_model_arguments(parser: Any) -> None:
    parser.add_argument("--model", help="id of the model that --with claude asks")
    parser.add_argument("--usd-per-mtok", metavar="IN,OUT", help="its prices per million tokens")


def seat_of(args: argparse.Namespace, usual: "Seat") -> "Seat":
    """The project's, but for what is given.  Raises ConfigError for a model whose prices nobody told."""
    given: dict[str, Any] = {}
    if args.model and args.model != usual.model:
        given["model"] = args.model
        if not args.usd_per_mtok:
            raise ConfigError(
                f"--model {args.model} needs --usd-per-mtok IN,OUT: its prices keep the budget"
            )
    if args.usd_per_mtok:
        try:
            given["usd_per_mtok_in"], given["usd_per_mtok_out"] = map(
                float, args.usd_per_mtok.split(",")
            )
        except ValueError:
            raise ConfigError(
                f"--usd-per-mtok must be two numbers such as 5,25, got {args.usd_per_mtok!r}"
            ) from None
    return dataclasses.replace(usual, **given)


def ask_claude(desk: "Desk", seat: "Seat", count: int) -> str:
    """At most `count` proposals and one draft of them, by a model; a line of how it ended.

    Raises ConfigError without the SDK or a key.
    """
    try:
        from jaxlm.research.seats import claude
    except ImportError as e:
        raise ConfigError(f"--with claude needs {e.name}: pip install 'jaxlm[research]'") from e

    task = (
        f"Propose at most {count} changes for this project, then make one draft of them. Look "
        "at its status, ledger, runs and findings first."
    )
    ended = claude.sit(desk, task, seat, lambda text: print(text, end="", flush=True))
    print()
    left = desk.status().usd_left
    return f"{ended.stop} after {ended.calls} calls, {ended.usd:.4f} USD; {left:.2f} left"
