# SPDX-License-Identifier: Apache-2.0
"""All runs of the suite, each trained once and kept: a folder of compressed telemetry.

A run's file is named by the hash of all that it depends on, so a changed kind or config trains
again and nothing else does; a killed suite goes on where it was.
"""

import dataclasses
import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.bench.faults.kinds import FAULTS, HEALTHY, plant_of
from jaxlm.bench.faults.plant import Plant
from jaxlm.bench.faults.world import (
    BASE_LR,
    MODELS,
    NUM_STEPS,
    VOCAB,
    WARMUP,
    base_config,
    changed,
    with_corpus,
    write_texts,
)
from jaxlm.config import RunConfig
from jaxlm.core.canonical import content_id, to_jsonable, write_atomic
from jaxlm.core.typed import from_dict

SEVERITIES, SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)
VERSION = 1  # of the plants: raised when all of them mean something else
REVISIONS = {
    "loss_spike_isolated": 2,
    "loss_spike_recurring": 2,
    "output_logit_drift": 2,
    "unshuffled_data": 2,
}  # of single kinds, from 1


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of the suite."""

    kind: str
    severity: int
    seed: int

    @property
    def is_tuning(self) -> bool:
        """Detectors may be tuned on these; the rest is only for scoring."""
        names = [*FAULTS, *HEALTHY]
        return (names.index(self.kind) + self.seed) % 2 == 0


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's telemetry, as it was written."""

    case: Case
    cause: str | None
    config: RunConfig
    rows: list[dict[str, Any]]


def all_cases() -> list[Case]:
    """Seed by seed, so that a part of the suite already holds every kind."""
    faults = [
        Case(kind, severity, seed) for seed in SEEDS for severity in SEVERITIES for kind in FAULTS
    ]
    healthy = [Case(kind, 0, seed) for seed in SEEDS for kind in HEALTHY]
    order = lambda case: (case.seed, case.severity != 2, case.severity)
    return sorted([*faults, *healthy], key=order)


def config_of(case: Case, plant: Plant, folder: Path) -> RunConfig:
    config = with_corpus(base_config(folder, case.seed), plant.corpus, folder)
    return changed(config, MODELS[plant.model] | plant.changes)


def path_of(case: Case, folder: Path) -> Path:
    """Of a run's telemetry.  Other folders, and new fields of a config, do not change it."""
    plant = plant_of(case.kind, case.severity, case.seed)
    versions = VERSION, REVISIONS.get(case.kind, 1)
    world = (NUM_STEPS, WARMUP, BASE_LR, VOCAB, MODELS[plant.model], plant.corpus, plant.changes)
    key = content_id([versions, dataclasses.asdict(case), world])
    return folder / "runs" / f"{case.kind}-{case.severity}-{case.seed}-{key[:12]}.json.gz"


def train_missing(folder: Path, cases: list[Case], tell: Callable[[str, float, str], None]) -> None:
    """Trains what the folder lacks, in this process, each program compiled once."""
    from jaxlm.bench.faults.run import planted_rows
    from jaxlm.bench.faults.step import build_faulty_trainer
    from jaxlm.data.prepare import prepare
    from jaxlm.data.tokenizer import load_tokenizer

    (folder / "runs").mkdir(parents=True, exist_ok=True)
    write_texts(folder)
    trainers: dict[str, Any] = {}
    for i, case in enumerate(cases):
        tell("planted runs", i / len(cases), f"{case.kind} {case.severity} {case.seed}")
        path = path_of(case, folder)
        if path.exists():
            continue
        plant = plant_of(case.kind, case.severity, case.seed)
        config = config_of(case, plant, folder)
        data = prepare(config.data)
        if plant.model not in trainers:
            tokenizer = load_tokenizer(data.tokenizer_path, sha256=data.tokenizer_sha256)
            trainers[plant.model] = build_faulty_trainer(config, tokenizer.bytes_per_token_V)
        rows = planted_rows(plant, config, data, trainers[plant.model], case.seed)
        kept = {"config": to_jsonable(config), "cause": plant.cause, "rows": rows}
        write_atomic(path, gzip.compress(json.dumps(kept).encode(), 5))
    tell("planted runs", 1.0, "")


def read_trained(folder: Path, cases: list[Case]) -> Iterator[Trained]:
    """Those of the cases that are there."""
    for case in cases:
        path = path_of(case, folder)
        if path.exists():
            kept = json.loads(gzip.decompress(path.read_bytes()))
            yield Trained(case, kept["cause"], from_dict(RunConfig, kept["config"]), kept["rows"])


def default_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "jaxlm" / "faults"
