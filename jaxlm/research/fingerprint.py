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

from jaxlm.config import RunConfig, identity
from jaxlm.core.canonical import content_id

PACKAGE = Path(__file__).parents[1]
KERNELS = PACKAGE.parent / "pallas_kernels"
NOT_TRAINING = ("cli", "research", "bench")  # folders whose code decides nothing that is computed
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


@functools.cache
def training_code() -> str:
    """sha256 over the sources that a run computes with, and the versions of their libraries."""
    ours = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in NOT_TRAINING]
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return content_id({"sources": _sources([*ours, *KERNELS.rglob("*.py")]), "versions": versions})


@functools.cache
def evaluator() -> str:
    """sha256 over what judges a run: the evaluator's own source on top of the training code's."""
    own = _sources([Path(__file__).parent / "evaluator.py"])
    return content_id({"evaluator": own, "code": training_code()})


@functools.cache
def rules() -> str:
    """sha256 over what turns losses into verdicts: statistics and policies."""
    here = Path(__file__).parent
    parts = [
        *here.glob("stats/*.py"),
        *here.glob("policies/*.py"),
        here / "review.py",
        here / "trial.py",
    ]
    return content_id(_sources(parts))


def run_id(config: RunConfig, data_id: str) -> str:
    """sha256, 64 hex digits."""
    return content_id({"config": identity(config), "code": training_code(), "data": data_id})


def _sources(paths: Iterable[Path]) -> dict[str, str]:
    """Path below the repository -> sha256."""
    root = PACKAGE.parent
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(paths)
    }
