# SPDX-License-Identifier: Apache-2.0
"""The trusted evaluation: what the checkpoint itself is worth, by another process.

Nothing that the training process printed or wrote counts as a result.  The checkpoint is loaded
anew (its files checked against their checksums), the validation text is hashed and its tokens
counted, updates and FLOPs are counted from config and telemetry, numbers that are not finite are
refused.  What the run says of itself is only compared.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.config import resolve
from jaxlm.core.canonical import file_sha256
from jaxlm.core.errors import RunError
from jaxlm.data.loader import BatchSource
from jaxlm.data.prepare import prepare
from jaxlm.data.prepared import PreparedData
from jaxlm.research.fingerprint import evaluator, run_id
from jaxlm.telemetry.writer import latest_rows
from jaxlm.train.restore import TrainedRun, restore_run
from jaxlm.train.run_dir import CHECKPOINTS, read_json
from jaxlm.train.setup import Trainer, on_mesh
from jaxlm.train.validate import validate

TOLERANCE = 1e-3  # relative: what may lie between a run's own last evaluation and ours


def evaluate_run(
    directory: Path, expected_run_id: str, like: Trainer | None = None
) -> dict[str, Any]:
    """Metrics by registered name, and what they rest on.

    like:  a trainer of the same shape, whose compiled evaluation is used again
    Raises RunError for a run that is not whole, not the expected one, or claims what it is not.
    """
    run = restore_run(directory)
    data = prepare(run.config.data)
    found = run_id(run.config, data.data_id)
    if found != expected_run_id:
        raise RunError(
            f"{directory} holds run {found[:12]}, not {expected_run_id[:12]}: config, training code "
            "or data changed since it was planned"
        )
    _check_whole(directory, run)
    trainer = like or run.trainer
    source = BatchSource(data, run.config.data, split="valid")
    with on_mesh(trainer.mesh, trainer.rules):
        metrics = validate(trainer, run.params, source)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise RunError(f"{directory}: {name} is {value}")
    _check_claim(directory, metrics)
    manifest = directory / CHECKPOINTS / f"{run.step:08d}" / "manifest.json"
    resolved = resolve(run.config, 1)
    return metrics | {
        "run_id": found,
        "step": run.step,
        "flops": resolved.train_flops_per_token * resolved.total_tokens,
        "checkpoint_sha256": file_sha256(manifest),
        "params_sha256": _parameters(run),
        "valid_sha256": validation_text(data),
        "evaluator": evaluator(),
    }


def _check_whole(directory: Path, run: TrainedRun) -> None:
    """All updates, each told once the state was sound, and no more than the config allows."""
    num_steps = run.config.train.num_steps
    if run.step != num_steps:
        raise RunError(f"{directory}: the checkpoint holds {run.step} updates, not {num_steps}")
    check_rows(directory, num_steps)


def check_rows(directory: Path, num_steps: int) -> None:
    """Raises RunError for telemetry without every update, or with a loss that is not finite."""
    rows = latest_rows(directory, "train")
    if [row["step"] for row in rows] != list(range(1, num_steps + 1)):
        raise RunError(f"{directory}: telemetry does not hold updates 1 to {num_steps}, each once")
    if not all(math.isfinite(row["train/loss_nats"]) for row in rows):
        raise RunError(f"{directory}: a training loss is not finite")


def _check_claim(directory: Path, metrics: dict[str, float]) -> None:
    final = (read_json(directory / "summary.json") or {}).get("final") or {}
    claimed = final.get("eval/bpb")
    if claimed is not None and not math.isclose(claimed, metrics["eval/bpb"], rel_tol=TOLERANCE):
        raise RunError(
            f"{directory} claims {claimed:.6f} bits per byte; its checkpoint has "
            f"{metrics['eval/bpb']:.6f}"
        )


def _parameters(run: TrainedRun) -> str:
    """sha256 over the numbers themselves: equal for equal results, whenever they were saved."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(run.params)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def validation_text(data: PreparedData) -> str:
    """sha256 over the packed validation rows of all corpora."""
    digest = hashlib.sha256()
    for corpus in data.corpora:
        for shard in corpus.valid.shards:
            digest.update(file_sha256(shard).encode())
    return digest.hexdigest()
