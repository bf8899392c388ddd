# SPDX-License-Identifier: Apache-2.0
"""Run directories that hold something else than an honest run of what was planned.

One tiny run is trained for real, copied for each attack, changed, and shown to the evaluator.
"""

import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.bench.attacks.attack import Attack, refused
from jaxlm.bench.attacks.diffs import NORM, appended
from jaxlm.bench.attacks.world import World
from jaxlm.core.canonical import file_sha256, write_json_atomic
from jaxlm.data.prepare import prepare
from jaxlm.research.evaluator import evaluate_run
from jaxlm.research.jobs import JobRun
from jaxlm.research.patch.judge import judge_patched
from jaxlm.research.plan import job_run
from jaxlm.telemetry.display import PlainDisplay
from jaxlm.train.checkpoint import Checkpointer, Identity, restore
from jaxlm.train.restore import restore_run
from jaxlm.train.run_dir import CHECKPOINTS
from jaxlm.train.session import run_training

Edit = Callable[[Path], object]  # of a run directory
HALFWAY = ("TrainConfig.checkpoint_every = 3",)  # operational: it does not enter the run's id


@functools.cache
def trained(world: World) -> JobRun:
    """A real run of six updates, checked: the evaluator passes it as it is."""
    run = job_run(world.load([world.gin], HALFWAY), 0, world.folder / "research")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        run_training(run.config, run.directory, "", PlainDisplay(nowhere))
    evaluate_run(run.directory, run.run_id)
    return run


def attacks(world: World) -> Iterator[Attack]:
    for name, (edit, why) in EDITS.items():
        yield Attack(target="the evaluator", name=name, run=partial(show, world, edit, why))
    yield Attack(
        target="the evaluator", name="stale result reused", run=partial(_another_seed, world)
    )
    for name, (edit, why) in PATCHED.items():
        run = partial(show_patched, world, edit, why)
        yield Attack(target="the evaluator", name=f"patched run: {name}", run=run)


def show(world: World, edit: Edit, why: str, folder: Path) -> str:
    run = trained(world)
    copy = folder / "run"
    shutil.copytree(run.directory, copy)
    edit(copy)
    return f"evaluator: {_short(refused(lambda: evaluate_run(copy, run.run_id), why), folder)}"


def _another_seed(world: World, folder: Path) -> str:
    """A finished run's directory, where one with another seed was planned."""
    run = trained(world)
    planned = job_run(run.config, 1, folder)
    act = lambda: evaluate_run(run.directory, planned.run_id)
    return f"evaluator: {_short(refused(act, 'changed since it was planned'), world.folder)}"


def _short(told: str, folder: Path) -> str:
    return told.replace(f"{folder}/", "")


def _summary(directory: Path) -> None:
    """What the run says of itself, a tenth better."""
    path = directory / "summary.json"
    summary = json.loads(path.read_text())
    summary["final"]["eval/bpb"] *= 0.9
    path.write_text(json.dumps(summary))


def _rows(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Edit:
    def edit(directory: Path) -> None:
        path = directory / "telemetry.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))

    return edit


def _last(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return [row for row in rows if row["kind"] == "train"][-1]


def _early(directory: Path) -> None:
    """Only the checkpoint of half the updates is there."""
    shutil.rmtree(directory / CHECKPOINTS / "00000006")


def _damaged(directory: Path) -> None:
    """Other bytes in the largest file of the last checkpoint."""
    files = (directory / CHECKPOINTS / "00000006" / "state").rglob("*")
    largest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def _not_finite(directory: Path) -> None:
    """Parameters that are NaN, sealed as training seals them."""
    run = restore_run(directory)
    state = restore(directory / CHECKPOINTS, run.step, run.trainer.abstract_state)
    nothing = jax.tree.map(lambda x: jnp.full_like(x, math.nan), state.params)
    broken = state._replace(params=nothing)
    data_id = prepare(run.config.data).data_id
    saver = Checkpointer(directory / CHECKPOINTS, 3, Identity(run.config.config_id, data_id))
    saver.save(run.step, broken)
    saver.wait()


def _config(section: str, field: str, value: object) -> Edit:
    def edit(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config[section][field] = value
        path.write_text(json.dumps(config))

    return edit


MISSING = "does not hold updates 1 to 6, each once"
EDITS: dict[str, tuple[Edit, str]] = {
    "printed fake result": (_summary, "claims .* bits per byte"),
    "early exit": (_early, "holds 3 updates, not 6"),
    "early exit, untold": (_rows(lambda rows: rows[: len(rows) // 2]), MISSING),
    "extra steps": (_rows(lambda rows: [*rows, _last(rows) | {"step": 7}]), MISSING),
    "NaN loss on the way": (
        _rows(lambda rows: [*rows, _last(rows) | {"train/loss_nats": math.nan}]), "is not finite",
    ),
    "NaN metric": (_not_finite, "eval/.* is nan"),
    "edited parameters": (_damaged, "holds 3 updates, not 6"),
    "shrunk evaluation": (_config("data", "valid_frac", 0.02), "changed since it was planned"),
    "longer training": (_config("train", "num_steps", 7), "changed since it was planned"),
    "a larger model": (_config("model", "ffn_dim", 64), "is of another model"),
}  # fmt: skip


def show_patched(world: World, edit: Edit, why: str, folder: Path) -> str:
    """Before the judge starts any guest."""
    diff = appended(NORM, "\nNOTHING = 1\n")
    run = job_run(world.load([world.gin], ()), 0, folder, diff=diff)
    steps = run.config.train.num_steps
    checkpoint = run.directory / CHECKPOINTS / f"{steps:08d}"
    checkpoint.mkdir(parents=True)
    write_json_atomic(run.directory / "config.json", run.config)
    rows = [{"kind": "train", "step": i + 1, "train/loss_nats": 5.0} for i in range(steps)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.directory / "telemetry.jsonl").write_text(text)
    np.save(checkpoint / "params.npy", np.zeros(3))
    seal = {"params_sha256": file_sha256(checkpoint / "params.npy")}
    write_json_atomic(checkpoint / "manifest.json", seal)
    edit(run.directory)
    return f"judge: {_short(refused(lambda: judge_patched(run), why), folder)}"


def _other_parameters(directory: Path) -> None:
    np.save(directory / CHECKPOINTS / "00000006" / "params.npy", np.ones(3))


PATCHED: dict[str, tuple[Edit, str]] = {
    "other parameters": (_other_parameters, "are not those that training left"),
    "fewer updates": (_rows(lambda rows: rows[:4]), MISSING),
    "another config": (_config("optim", "peak_lr", 0.5), "does not hold run .* changed"),
}
