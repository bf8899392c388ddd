# SPDX-License-Identifier: Apache-2.0
"""A desk over the tiny project of tests/e2e/workshop.py, without training anything."""

from collections.abc import Sequence
from pathlib import Path

from jaxlm.cli.gin_edge import load
from jaxlm.config import RunConfig
from jaxlm.research.desk import person
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.records import Project
from tests.e2e.workshop import furnish


def read(files: Sequence[str], overrides: Sequence[str]) -> RunConfig:
    return load(list(files), list(overrides))


def begun(
    folder: Path, seat: str = "rules", overrides: tuple[str, ...] = (), **limits: float
) -> Desk:
    """A project on base.gin, in the current folder."""
    furnish(folder)
    desk = Desk(Path("research"), read, seat, [Path("runs")])
    given = {"max_flops": 1e12, "max_usd": 1.0, "max_hours": 1.0} | limits
    person.begin(desk, Project(config=("base.gin",), overrides=overrides, promote=(), **given))
    return desk


def proposed(desk: Desk, **changes: str) -> str:
    """Id of a proposal; fields by their short names."""
    named = {f"OptimConfig.{field}": value for field, value in changes.items()}
    return desk.propose("a change", named, "to see", -0.01, -0.03, 0.01).id


def drafted(desk: Desk, **changes: str) -> str:
    """Id of a draft of one proposal, checked."""
    return desk.draft([proposed(desk, **changes)], "it helps").id


def yes(text: str, wanted: str) -> bool:
    return True
