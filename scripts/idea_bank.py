# SPDX-License-Identifier: Apache-2.0
"""Trains the idea bank: every idea below, over many seeds at two scales, into one table.

    python scripts/idea_bank.py research/bank TABLE.csv [--seeds 16] [--workers 2] [--scale 0]
    python scripts/idea_bank.py research/bank TABLE.csv --check 0.05

An idea is a change of configs/idea_bank.gin; its effect is what it does to the validation loss.
The same command goes on where it stopped.  Rows: idea, scale, seed, fraction of training, nats/token.
TABLE.json beside it says what made it.  With --check a random share of the runs is trained anew, in a
folder of its own, and must come out bit for bit (same versions and kind of machine).
"""

import argparse
import csv
import math
import os
import platform
import random
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from jaxlm.cli.gin_edge import load
from jaxlm.core.canonical import write_json_atomic
from jaxlm.research import fingerprint
from jaxlm.research.launch import Workers
from jaxlm.research.ledger import Ledger
from jaxlm.research.plan import Rules, Seeds, Setting, job_run, plan
from jaxlm.research.records import BASELINE
from jaxlm.research.runner import Means, Progress, execute, train_and_judge
from jaxlm.telemetry.display import make_display
from jaxlm.telemetry.writer import latest_rows

Row = tuple[str, int, int, float, float]  # idea, scale, seed, fraction, loss
METRIC = "eval/loss_nats"
CONFIG = str(Path(__file__).parents[1] / "configs" / "idea_bank.gin")
SCALES: tuple[tuple[str, ...], ...] = (
    (),
    (
        "ModelConfig.num_layers = 3",
        "ModelConfig.embed_dim = 96",
        "ModelConfig.num_heads = 3",
        "ModelConfig.ffn_dim = 384",
        "TrainConfig.num_steps = 600",
        "TrainConfig.eval_every = 60",
    ),
)
IDEAS: dict[str, tuple[str, ...]] = {
    "lr x1.5": ("OptimConfig.peak_lr = 6e-3",),
    "lr x2.5": ("OptimConfig.peak_lr = 1e-2",),
    "lr x0.6": ("OptimConfig.peak_lr = 2.4e-3",),
    "no weight decay": ("OptimConfig.weight_decay = 0.0",),
    "weight decay 0.3": ("OptimConfig.weight_decay = 0.3",),
    "no warmup": ("OptimConfig.warmup_steps = 0",),
    "warmup 100": ("OptimConfig.warmup_steps = 100",),
    "cosine": ('OptimConfig.schedule = "cosine"',),
    "wsd": ('OptimConfig.schedule = "wsd"',),
    "decay to a tenth": ("OptimConfig.final_lr_frac = 0.1",),
    "b1 0.8": ("OptimConfig.b1 = 0.8",),
    "b2 0.99": ("OptimConfig.b2 = 0.99",),
    "eps 1e-5": ("OptimConfig.eps = 1e-5",),
    "no clipping": ("OptimConfig.clip_norm = None",),
    "clip 0.3": ("OptimConfig.clip_norm = 0.3",),
    "z-loss": ("OptimConfig.z_loss = 1e-4",),
    "lion": ('OptimConfig.name = "lion"', "OptimConfig.peak_lr = 8e-4"),
    "muon": ('OptimConfig.name = "muon"', "OptimConfig.muon_lr = 0.02"),
    "qk-norm": ("ModelConfig.qk_norm = True",),
    "relu2": ('ModelConfig.activation = "relu2"',),
    "swiglu": ('ModelConfig.activation = "swiglu"', "ModelConfig.ffn_dim = 168"),
    "tied embeddings": ("ModelConfig.tied_embeddings = True",),
    "one kv head": ("ModelConfig.num_kv_heads = 1",),
    "windows": ('ModelConfig.layer_pattern = ("local",)', "ModelConfig.window = 32"),
    "sinks": ("ModelConfig.attention_sinks = True",),
    "logit soft-cap": ("ModelConfig.logit_softcap = 30.0",),
    "attention soft-cap": ("ModelConfig.attention_softcap = 20.0",),
    "rope theta 1000": ("ModelConfig.rope_theta = 1000.0",),
    "narrow heads": ("ModelConfig.head_dim = 16",),
    "half the batch, twice the updates": (
        "DataConfig.batch_size = 4",
        "TrainConfig.num_steps = 600",
        "TrainConfig.eval_every = 60",
    ),
}
# at the larger scale widths and lengths follow it
AT_SCALE: dict[tuple[str, int], tuple[str, ...]] = {
    ("swiglu", 1): ('ModelConfig.activation = "swiglu"', "ModelConfig.ffn_dim = 256"),
    ("half the batch, twice the updates", 1): (
        "DataConfig.batch_size = 4",
        "TrainConfig.num_steps = 1200",
        "TrainConfig.eval_every = 120",
    ),
}


def settings(
    scale: int, overrides: Sequence[str] = (), only: Sequence[str] | None = None
) -> list[Setting]:
    """The baseline and every idea, or those in `only`."""
    base = [*SCALES[scale], *overrides]
    found = [Setting(BASELINE, {}, load([CONFIG], base))]
    for name, texts in IDEAS.items():
        if only is None or name in only:
            changes = AT_SCALE.get((name, scale), texts)
            pairs = (text.split(" = ", 1) for text in changes)
            found.append(Setting(name, dict(pairs), load([CONFIG], [*base, *changes])))
    return found


def train(project: Path, scale: int, args: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    arms = settings(scale, args.set, args.only)
    rules = Rules(metric=METRIC, hypothesis=f"idea bank, scale {scale}")
    with make_display() as display:
        means = _means(project, args.workers, display.progress)
        stage = "screen" if len(arms) > 1 else "pilot"
        planned = plan(arms, Seeds(count=args.seeds), rules, project, stage=stage)
        runs = execute(planned, means)
    curve = {arm.name for arm in planned.protocol.curve}
    rows = []
    for run in runs:
        if run.arm not in curve:
            rows += rows_of(project / run.directory, (run.arm, scale, run.seed))
    return rows


def rows_of(directory: Path, key: tuple[str, int, int]) -> list[Row]:
    evals = latest_rows(directory, "eval")
    last = evals[-1]["step"]
    return [(*key, round(row["step"] / last, 4), row[METRIC]) for row in evals]


def check(table: Path, share: float, args: argparse.Namespace) -> int:
    """Trains a random share of the table's runs anew; the number of those that differ in any bit."""
    with open(table, newline="", encoding="utf-8") as f:
        told: dict[tuple[str, int, int], list[Row]] = {}
        for r in csv.DictReader(f):
            key = (r["idea"], int(r["scale"]), int(r["seed"]))
            told.setdefault(key, []).append((*key, float(r["fraction"]), float(r["loss"])))
    allowed = [key for key in sorted(told) if args.only is None or key[0] in args.only]
    count = min(len(allowed), math.ceil(share * len(told)))
    drawn = random.Random(args.draw).sample(allowed, count)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, make_display() as display:
        means = _means(Path(folder), args.workers, display.progress)
        configs = {
            (s.name, scale): s.config
            for scale in range(len(SCALES))
            for s in settings(scale, args.set)
        }
        jobs = {key: job_run(configs[key[:2]], key[2], Path(folder)) for key in drawn}
        train_and_judge(list(jobs.values()), means)
        for key, job in jobs.items():
            kept = {row[3] for row in told[key]}  # a table may hold the last fractions only
            found = [row for row in rows_of(job.directory, key) if row[3] in kept]
            is_same = found == told[key]
            wrong += not is_same
            most = max(
                (abs(a[-1] - b[-1]) for a, b in zip(found, told[key], strict=False)), default=0
            )
            says = "bit for bit" if is_same else f"DIFFERS, by up to {most:.3g} nats"
            print(f"{key[0]}, scale {key[1]}, seed {key[2]}: {len(found)} rows, {says}")
    print(f"{count - wrong} of {count} runs as in {table}, {count} of its {len(told)} drawn")
    return wrong


def _means(project: Path, workers: int, progress: Progress) -> Means:
    by = "whoever ran the script"
    return Means(project=project, progress=progress, workers=Workers(workers), approved_by=by)


def _facts() -> dict[str, object]:
    """What a table's losses depend on, beside it."""
    versions = {
        name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")
    }
    return {
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions,
        "training_code": fingerprint.training_code(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=int, choices=range(len(SCALES)), help="only this one")
    parser.add_argument("--only", action="append", metavar="IDEA", help="only these; repeatable")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all")
    parser.add_argument("--check", type=float, metavar="SHARE", help="train a share of TABLE anew")
    parser.add_argument("--draw", type=int, default=0, help="which share (default %(default)s)")
    args = parser.parse_args()
    if args.check is not None:
        return min(1, check(args.table, args.check, args))
    scales = range(len(SCALES)) if args.scale is None else [args.scale]
    rows = [row for s in scales for row in train(args.project, s, args)]
    with open(args.table, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("idea", "scale", "seed", "fraction", "loss"))
        writer.writerows(rows)
    write_json_atomic(args.table.with_suffix(".json"), _facts())
    records = sum(1 for _ in Ledger(args.project / "ledger.jsonl"))
    print(f"{len(rows)} rows in {args.table}; {records} records in {args.project}/ledger.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(main())
