# SPDX-License-Identifier: Apache-2.0
"""Trains the idea bank: every idea below, over many seeds at two scales, into one table.

    python scripts/idea_bank.py research/bank TABLE.csv [--seeds 16] [--workers 2] [--scale 0]

An idea is a change of configs/idea_bank.gin; its effect is what it does to the validation loss.
The same command goes on where it stopped.  Rows: idea, scale, seed, fraction of training, nats/token.
"""

import argparse
import csv
from pathlib import Path

from jaxlm.cli.gin_edge import load
from jaxlm.research.campaign import Rules, Setting, execute, plan
from jaxlm.research.ledger import Ledger
from jaxlm.research.records import BASELINE
from jaxlm.telemetry.display import make_display
from jaxlm.telemetry.writer import latest_rows

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


def settings(scale: int) -> list[Setting]:
    """The baseline and every idea."""
    found = [Setting(BASELINE, {}, load([CONFIG], list(SCALES[scale])))]
    for name, texts in IDEAS.items():
        changes = AT_SCALE.get((name, scale), texts)
        config = load([CONFIG], [*SCALES[scale], *changes])
        pairs = ((field, value) for field, value in (text.split(" = ", 1) for text in changes))
        found.append(Setting(name, dict(pairs), config))
    return found


def train(project: Path, scale: int, num_seeds: int, workers: int) -> list[tuple[object, ...]]:
    """Rows of the table."""
    with make_display() as display:
        rules = Rules(metric="eval/loss_nats", hypothesis=f"idea bank, scale {scale}")
        planned = plan(settings(scale), num_seeds, None, rules, project)
        runs = execute(
            planned, project, "whoever ran the script", display.progress, workers, "auto"
        )
    curve = {arm.name for arm in planned.protocol.curve}
    rows = []
    for run in runs:
        if run.arm not in curve:
            evals = latest_rows(project / run.directory, "eval")
            last = evals[-1]["step"]
            rows += [
                (run.arm, scale, run.seed, round(row["step"] / last, 4), row["eval/loss_nats"])
                for row in evals
            ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=int, choices=range(len(SCALES)), help="only this one")
    args = parser.parse_args()
    scales = range(len(SCALES)) if args.scale is None else [args.scale]
    rows = [row for s in scales for row in train(args.project, s, args.seeds, args.workers)]
    with open(args.table, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("idea", "scale", "seed", "fraction", "loss"))
        writer.writerows(rows)
    records = sum(1 for _ in Ledger(args.project / "ledger.jsonl"))
    print(f"{len(rows)} rows in {args.table}; {records} records in {args.project}/ledger.jsonl")


if __name__ == "__main__":
    main()
