# SPDX-License-Identifier: Apache-2.0
"""What a result depends on, as hashes: the code that trains, the code that judges, the run itself.

    run id = sha256 of {config without its operational fields, training code, data}

so the same arm, seed, code and data have one id, and are trained once.  Standard library only.
"""

import functools
import hashlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig, identity
from jaxlm.core.canonical import content_id

PACKAGE = Path(__file__).parents[1]
KERNELS = PACKAGE.parent / "pallas_kernels"
# Folders whose code decides nothing that is computed.
NOT_TRAINING = ("cli", "dash", "bench", "research", "plan")
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


@functools.cache
def training_code() -> str:
    """sha256 over the sources that a run computes with, and the versions of their libraries."""
    ours = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in NOT_TRAINING]
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return content_id({"sources": _sources([*ours, *KERNELS.rglob("*.py")]), "versions": versions})


@functools.cache
def evaluator() -> str:
    """sha256 over what judges a run: the evaluators' own source on top of the training code's."""
    here = Path(__file__).parent
    judges = [here / "evaluator.py", *here.glob("patch/*.py"), *here.glob("sandbox/*.py")]
    own = _sources(judges)
    return content_id({"evaluator": own, "code": training_code()})


@functools.cache
def rules() -> str:
    """sha256 over what turns losses into verdicts: statistics and policies."""
    here = Path(__file__).parent
    own = ("review.py", "earlier.py", "departures.py", "trial.py")
    parts = [*here.glob("stats/*.py"), *here.glob("policies/*.py"), *(here / n for n in own)]
    return content_id(_sources(parts))


def run_id(config: RunConfig, data_id: str, patch: str | None = None) -> str:
    """sha256, 64 hex digits.  patch: its id, of a run whose code it changes."""
    return run_id_of(config, training_code(), data_id, patch)


def run_id_of(config: RunConfig, code: str, data_id: str | None, patch: str | None) -> str:
    """Of a run by other code than today's."""
    parts: dict[str, Any] = {"config": identity(config), "code": code, "data": data_id}
    return content_id(parts if patch is None else parts | {"patch": patch})


def _sources(paths: Iterable[Path]) -> dict[str, str]:
    """Path below the repository -> sha256."""
    root = PACKAGE.parent
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(paths)
    }
