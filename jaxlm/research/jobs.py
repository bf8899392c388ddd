# SPDX-License-Identifier: Apache-2.0
"""Runs to be trained, and which of them one compiled program can train.

Seeds and the optimizer's scalars (optim/hparams.py) are inputs of the jitted step, so runs that
differ in these alone share a program; every other field shapes it.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from jaxlm.config import RunConfig, identity
from jaxlm.core.canonical import content_id, to_jsonable
from jaxlm.core.errors import RunError
from jaxlm.core.typed import from_dict
from jaxlm.optim.hparams import FIELDS
from jaxlm.train.run_dir import read_json

How = Literal["auto", "in turn", "together"]


@dataclasses.dataclass(frozen=True)
class JobRun:
    """One run, and where it will be."""

    config: RunConfig
    run_id: str
    directory: Path
    until: int | None = None  # updates after which it is to stop; None: the whole run
    diff: str | None = None  # of the code, which nobody trusts; trained in the sandbox (patch/)
    is_weaker_allowed: bool = False  # for such a run, one wall where the machine lacks the other


@dataclasses.dataclass(frozen=True)
class Job:
    """What one worker does."""

    runs: tuple[JobRun, ...]
    how: How = "auto"  # together on accelerators, in turn on CPUs


def write_job(path: Path, job: Job) -> None:
    path.write_text(json.dumps(to_jsonable(job)), encoding="utf-8")


def read_job(path: Path) -> Job:
    """Raises RunError for a file that is no job."""
    plain = read_json(path)
    if plain is None:
        raise RunError(f"{path} does not exist; `jaxlm ablate` writes such files")
    runs = (
        JobRun(
            from_dict(RunConfig, run["config"]),
            run["run_id"],
            Path(run["directory"]),
            run.get("until"),
            run.get("diff"),
            run.get("is_weaker_allowed", False),
        )
        for run in plain["runs"]
    )
    return Job(tuple(runs), plain["how"])


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """Seed of the initial parameters and of the order of the data, so that arms pair by seed."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, seed=seed),
        train=dataclasses.replace(config.train, seed=seed),
    )


def program_id(config: RunConfig) -> str:
    """Equal for configs that one compiled program trains."""
    shape = identity(config)
    for name in FIELDS:
        del shape["optim"][name]
    del shape["train"]["seed"], shape["data"]["seed"]
    return content_id(shape)


def by_program(runs: Iterable[JobRun]) -> list[list[JobRun]]:
    """Groups in the order of their first run; those of a group stop at the same update."""
    groups: dict[tuple[str, int | None], list[JobRun]] = {}
    for run in runs:
        groups.setdefault((program_id(run.config), run.until), []).append(run)
    return list(groups.values())
