# SPDX-License-Identifier: Apache-2.0
"""Trains the idea bank: every idea below, over many seeds at two scales, into one table.

    python scripts/idea_bank.py TABLE.csv [--config FILE.gin] [--seeds 16] [--scale 0] [--only IDEA]
    python scripts/idea_bank.py TABLE.csv --check 0.05 [--adopt]

An idea is a change of the config (configs/nano.gin); its effect is what it does to the validation
loss.  Ideas that a config has already are left out: configs/nano_tuned.gin has two of them.
Rows: idea, scale, seed, fraction of training, nats per token; a run's rows are written when it ends,
and the same command goes on where it stopped.  TABLE.json beside it says what the losses depend on:
each idea's changes, tokens, training code, versions, machine.  With --check a random share of the
runs is trained anew and must come out bit for bit (same versions and kind of machine).  Code that
changed since may go on with a table once it has passed that check with --adopt.
"""

import argparse
import csv
import io
import math
import os
import platform
import random
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxlm.cli.gin_edge import load
from jaxlm.config import RunConfig, resolve
from jaxlm.core.canonical import write_atomic, write_json_atomic
from jaxlm.core.errors import DataError, UserError
from jaxlm.data.prepare import prepare
from jaxlm.research import lean_runs
from jaxlm.research.bank import COLUMNS
from jaxlm.research.fingerprint import LIBRARIES
from jaxlm.research.jobs import program_id, with_seed
from jaxlm.research.lean_runs import Curve, Program
from jaxlm.research.plan import Setting
from jaxlm.research.records import BASELINE
from jaxlm.telemetry.display import make_display
from jaxlm.train.run_dir import read_json

Key = tuple[str, int, int]  # idea, scale, seed
Facts = dict[str, Any]
CONFIG = str(Path(__file__).parents[1] / "configs" / "nano.gin")
SCALES: tuple[tuple[str, ...], ...] = (
    (),
    (
        "ModelConfig.embed_dim = 64",
        "ModelConfig.ffn_dim = 256",
        "TrainConfig.num_steps = 360",
        "TrainConfig.eval_every = 36",
    ),
)


def _of_group(pattern: str, scale: str) -> tuple[str, ...]:
    """The change of one scale of the parameters whose path matches."""
    return (
        "OptimConfig.groups = [@some/GroupConfig()]",
        f'some/GroupConfig.pattern = "{pattern}"',
        f"some/GroupConfig.{scale}",
    )


IDEAS: dict[str, tuple[str, ...]] = {
    "lr x1.5": ("OptimConfig.peak_lr = 1.2e-2",),
    "lr x2.5": ("OptimConfig.peak_lr = 2e-2",),
    "lr x0.6": ("OptimConfig.peak_lr = 4.8e-3",),
    "no weight decay": ("OptimConfig.weight_decay = 0.0",),
    "weight decay 1": ("OptimConfig.weight_decay = 1.0",),
    "no warmup": ("OptimConfig.warmup_steps = 0",),
    "warmup 80": ("OptimConfig.warmup_steps = 80",),
    "decay to a tenth": ("OptimConfig.final_lr_frac = 0.1",),
    "b1 0.8": ("OptimConfig.b1 = 0.8",),
    "b1 0.95": ("OptimConfig.b1 = 0.95",),
    "b2 0.99": ("OptimConfig.b2 = 0.99",),
    "eps 1e-5": ("OptimConfig.eps = 1e-5",),
    "no clipping": ("OptimConfig.clip_norm = None",),
    "clip 0.3": ("OptimConfig.clip_norm = 0.3",),
    "z-loss": ("OptimConfig.z_loss = 1e-3",),
    "cosine": ('OptimConfig.schedule = "cosine"',),
    "wsd": ('OptimConfig.schedule = "wsd"',),
    "lion": ('OptimConfig.name = "lion"', "OptimConfig.peak_lr = 1.5e-3"),
    "qk-norm": ("ModelConfig.qk_norm = True",),
    "relu2": ('ModelConfig.activation = "relu2"',),
    "swiglu": ('ModelConfig.activation = "swiglu"', "ModelConfig.ffn_dim = 84"),
    "tied embeddings": ("ModelConfig.tied_embeddings = True",),
    "one kv head": ("ModelConfig.num_kv_heads = 1",),
    "half the batch, twice the updates": (
        "DataConfig.batch_size = 4",
        "TrainConfig.num_steps = 480",
        "TrainConfig.eval_every = 48",
        "TrainConfig.eval_batches = 64",
    ),
    "muon": ('OptimConfig.name = "muon"', "OptimConfig.muon_lr = 0.02"),
    # a second lot, written down before any of it was trained
    "lr x0.8": ("OptimConfig.peak_lr = 6.4e-3",),
    "b1 0.85": ("OptimConfig.b1 = 0.85",),
    "b2 0.9": ("OptimConfig.b2 = 0.9",),
    "b2 0.98": ("OptimConfig.b2 = 0.98",),
    "eps 1e-6": ("OptimConfig.eps = 1e-6",),
    "clip 0.5": ("OptimConfig.clip_norm = 0.5",),
    "clip 2": ("OptimConfig.clip_norm = 2.0",),
    "weight decay 0.03": ("OptimConfig.weight_decay = 0.03",),
    "weight decay 0.3": ("OptimConfig.weight_decay = 0.3",),
    "z-loss 1e-4": ("OptimConfig.z_loss = 1e-4",),
    "z-loss 1e-2": ("OptimConfig.z_loss = 1e-2",),
    "warmup 10": ("OptimConfig.warmup_steps = 10",),
    "warmup 40": ("OptimConfig.warmup_steps = 40",),
    "decay to a fiftieth": ("OptimConfig.final_lr_frac = 0.02",),
    "wsd, decay over half": ('OptimConfig.schedule = "wsd"', "OptimConfig.decay_frac = 0.5"),
    "wsd, decay over a tenth": ('OptimConfig.schedule = "wsd"', "OptimConfig.decay_frac = 0.1"),
    "linear": ('OptimConfig.schedule = "linear"',),
    "constant": ('OptimConfig.schedule = "constant"',),
    "schedule-free": ('OptimConfig.name = "schedule_free"', 'OptimConfig.schedule = "constant"'),
    "adafactor": ('OptimConfig.name = "adafactor"',),
    "muon, lr 0.01": ('OptimConfig.name = "muon"', "OptimConfig.muon_lr = 0.01"),
    "muon, momentum 0.9": ('OptimConfig.name = "muon"', "OptimConfig.muon_momentum = 0.9"),
    "embedding lr x3": _of_group("embed/.*", "lr_scale = 3.0"),
    "embedding lr / 3": _of_group("embed/.*", "lr_scale = 0.33"),
    "output lr x3": _of_group("output/.*", "lr_scale = 3.0"),
    "output lr / 3": _of_group("output/.*", "lr_scale = 0.33"),
    "attention lr x2": _of_group("layers/.*/attention/.*", "lr_scale = 2.0"),
    "no decay of the embedding": _of_group("embed/.*", "weight_decay_scale = 0.0"),
    "geglu": ('ModelConfig.activation = "geglu"', "ModelConfig.ffn_dim = 84"),
    "rope theta 1e3": ("ModelConfig.rope_theta = 1e3",),
    "rope theta 5e5": ("ModelConfig.rope_theta = 5e5",),
    "norm eps 1e-5": ("ModelConfig.norm_eps = 1e-5",),
    "attention cap 20": ("ModelConfig.attention_softcap = 20.0",),
    "attention cap 50": ("ModelConfig.attention_softcap = 50.0",),
    "logit cap 15": ("ModelConfig.logit_softcap = 15.0",),
    "logit cap 30": ("ModelConfig.logit_softcap = 30.0",),
    "attention sinks": ("ModelConfig.attention_sinks = True",),
    "window of 8": ('ModelConfig.layer_pattern = ("local",)', "ModelConfig.window = 8"),
    "window of 8 below": (
        'ModelConfig.layer_pattern = ("local", "full")',
        "ModelConfig.window = 8",
    ),
    "four heads": ("ModelConfig.num_heads = 4",),
    "one head": ("ModelConfig.num_heads = 1",),
    "three layers, thin MLPs": ("ModelConfig.num_layers = 3", "ModelConfig.ffn_dim = 64"),
    "one layer, wide MLP": ("ModelConfig.num_layers = 1", "ModelConfig.ffn_dim = 320"),
    "thin heads, wide MLPs": ("ModelConfig.head_dim = 8", "ModelConfig.ffn_dim = 160"),
    "twice the batch, half the updates": (
        "DataConfig.batch_size = 16",
        "TrainConfig.num_steps = 120",
        "TrainConfig.eval_every = 12",
        "TrainConfig.eval_batches = 16",
    ),
}
# at the larger scale widths and lengths follow it
AT_SCALE: dict[tuple[str, int], tuple[str, ...]] = {
    ("swiglu", 1): ('ModelConfig.activation = "swiglu"', "ModelConfig.ffn_dim = 168"),
    ("geglu", 1): ('ModelConfig.activation = "geglu"', "ModelConfig.ffn_dim = 168"),
    ("three layers, thin MLPs", 1): ("ModelConfig.num_layers = 3", "ModelConfig.ffn_dim = 128"),
    ("one layer, wide MLP", 1): ("ModelConfig.num_layers = 1", "ModelConfig.ffn_dim = 640"),
    ("thin heads, wide MLPs", 1): ("ModelConfig.head_dim = 16", "ModelConfig.ffn_dim = 320"),
    ("twice the batch, half the updates", 1): (
        "DataConfig.batch_size = 16",
        "TrainConfig.num_steps = 180",
        "TrainConfig.eval_every = 18",
        "TrainConfig.eval_batches = 16",
    ),
    ("half the batch, twice the updates", 1): (
        "DataConfig.batch_size = 4",
        "TrainConfig.num_steps = 720",
        "TrainConfig.eval_every = 72",
        "TrainConfig.eval_batches = 64",
    ),
}


def settings(scale: int, overrides: Sequence[str] = (), config: str = CONFIG) -> list[Setting]:
    """The baseline and every idea that changes it."""
    base = [*SCALES[scale], *overrides]
    found = [Setting(BASELINE, {}, load([config], base))]
    for name, texts in IDEAS.items():
        changes = AT_SCALE.get((name, scale), texts)
        pairs = (text.split(" = ", 1) for text in changes)
        found.append(Setting(name, dict(pairs), load([config], [*base, *changes])))
    return [found[0], *(s for s in found if s.config != found[0].config)]


def read_runs(path: Path) -> dict[Key, Curve]:
    """The runs that a table holds whole; what a kill left of one is not there."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    if list(rows.fieldnames or COLUMNS) != list(COLUMNS):
        raise DataError(f"{path}: the columns must be {','.join(COLUMNS)}; give another file")
    found: dict[Key, Curve] = {}
    for row in rows:
        key = (row["idea"], int(row["scale"]), int(row["seed"]))
        loss = float(row["loss"]) if row["loss"] else math.nan
        found.setdefault(key, []).append((float(row["fraction"]), loss))
    return {key: curve for key, curve in found.items() if curve[-1][0] == 1.0}


def as_text(runs: Iterable[tuple[Key, Curve]]) -> str:
    """Lines of the table; no loss where a run did not complete."""
    text = io.StringIO()
    for key, curve in runs:
        rows = [(*key, fraction, "" if math.isnan(loss) else loss) for fraction, loss in curve]
        csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def curves(todo: Iterable[tuple[Key, RunConfig]]) -> Iterator[tuple[Key, Curve]]:
    """Trains runs in turn, a program for as long as they need the same."""
    program: Program | None = None
    for key, config in todo:
        if program is None or program.id != program_id(config):
            program = Program(config)
        yield key, program.run(config)


def train(table: Path, args: argparse.Namespace) -> int:
    """Number of runs trained.  Raises DataError for a table that other code or machines began."""
    scales = range(len(SCALES)) if args.scale is None else [args.scale]
    arms = {
        (s.name, scale): s
        for scale in scales
        for s in settings(scale, args.set, args.config)
        if not args.only or s.name in (BASELINE, *args.only)
    }
    done = read_runs(table)
    _write_facts(table, arms, done)
    write_atomic(table, (",".join(COLUMNS) + "\n" + as_text(done.items())).encode())
    todo = [
        ((*arm, seed), with_seed(setting.config, seed))
        for arm, setting in arms.items()
        for seed in range(args.seeds)
        if (*arm, seed) not in done
    ]
    with open(table, "a", encoding="utf-8") as f, make_display() as display:
        for count, (key, curve) in enumerate(curves(todo), start=1):
            f.write(as_text([(key, curve)]))
            f.flush()
            display.progress("idea bank", count / len(todo), f"{key[0]}, scale {key[1]}")
    return len(todo)


def _write_facts(table: Path, arms: dict[tuple[str, int], Setting], done: Iterable[Key]) -> None:
    """TABLE.json: that of before with what is new.  Raises DataError where the two do not agree."""
    path, now = table.with_suffix(".json"), facts(arms)
    old = read_json(path) or {}
    if done and (wrong := differences(old, now)):
        raise DataError(
            f"{table} was begun with {wrong[0]}; give another file, or --check 0.05 --adopt"
        )
    ideas = {key: made for key, made in old.get("ideas", {}).items() if done}
    earlier = {"earlier": old["earlier"]} if done and "earlier" in old else {}
    write_json_atomic(path, now | earlier | {"ideas": ideas | now["ideas"]})


def facts(arms: dict[tuple[str, int], Setting]) -> Facts:
    """What the losses depend on, and what each idea is."""
    baseline = arms[BASELINE, min(scale for _, scale in arms)].config
    return {
        "command": shlex.join(["python", *sys.argv]),
        "code": lean_runs.code(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "machine": {"cpu": _cpu(), "python": platform.python_version(), "threads": _threads()},
        "data": prepare(baseline.data).data_id,
        "ideas": {f"{name}, scale {scale}": _made(arms[name, scale]) for name, scale in arms},
    }


def _made(setting: Setting) -> Facts:
    resolved = resolve(setting.config, 1)
    tokens = resolved.total_tokens
    return {
        "changes": setting.changes,
        "config": setting.config.config_id,
        "tokens": tokens,
        "flops": resolved.train_flops_per_token * tokens,
    }


def differences(old: Facts, now: Facts) -> list[str]:
    """What a table was made with, where that is not what there is now; a phrase each."""
    found = [
        f"other {name}: {old.get(name)}, now {now[name]}"
        for name in ("code", "versions", "machine", "data")
        if old.get(name) != now[name]
    ]
    ideas = old.get("ideas", {})
    both = ideas.keys() & now["ideas"].keys()
    return found + [f"another {x!r}" for x in sorted(both) if ideas[x] != now["ideas"][x]]


def _cpu() -> str:
    """The model and what it computes with: products differ in the last bits between kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    read = {name.strip(): value.strip() for name, value in told.items()}
    vector = [flag for flag in read.get("flags", "").split() if flag.startswith(("avx", "fma"))]
    return f"{read.get('model name', platform.machine())}; {' '.join(sorted(vector))}"


def _threads() -> int:
    """That jax may use: 1 once lean_runs.pin was called."""
    is_pinned = "multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", "")
    return 1 if is_pinned else os.cpu_count() or 1


def check(table: Path, share: float, args: argparse.Namespace) -> int:
    """Trains a random share of the table's runs anew; the number of those that differ in any bit."""
    told = read_runs(table)
    arms = {(s.name, k): s for k in range(len(SCALES)) for s in settings(k, args.set, args.config)}
    old, now = read_json(table.with_suffix(".json")) or {}, facts(arms)
    for phrase in differences(old, now):
        print(f"{table} was made with {phrase}")
    allowed = [key for key in told if not args.only or key[0] in args.only]
    drawn = random.Random(args.draw).sample(allowed, math.ceil(share * len(allowed)))
    todo = [(key, with_seed(arms[key[:2]].config, key[2])) for key in told if key in drawn]
    wrong = 0
    for key, found in curves(todo):
        is_same = as_text([(key, found)]) == as_text([(key, told[key])])
        wrong += not is_same
        most = max(
            (abs(a - b) for (_, a), (_, b) in zip(found, told[key], strict=False)), default=0
        )
        says = "bit for bit" if is_same else f"DIFFERS, by up to {most:.3g} nats"
        print(f"{key[0]}, scale {key[1]}, seed {key[2]}: {len(found)} losses, {says}", flush=True)
    print(f"{len(todo) - wrong} of {len(todo)} runs as in {table}, drawn of {len(allowed)}")
    if args.adopt and todo and not wrong:
        earlier = [
            *old.get("earlier", []),
            {"code": old.get("code"), "command": old.get("command")},
        ]
        ideas = old.get("ideas", {}) | now["ideas"]
        write_json_atomic(table.with_suffix(".json"), now | {"earlier": earlier, "ideas": ideas})
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument(
        "--config", default=CONFIG, metavar="FILE", help="default: configs/nano.gin"
    )
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--scale", type=int, choices=range(len(SCALES)), help="only this one")
    parser.add_argument("--only", action="append", metavar="IDEA", help="only these; repeatable")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all")
    parser.add_argument("--check", type=float, metavar="SHARE", help="train a share of TABLE anew")
    parser.add_argument("--adopt", action="store_true", help="go on with it, if they come out")
    parser.add_argument("--draw", type=int, default=0, help="which share (default %(default)s)")
    args = parser.parse_args()
    try:
        if args.check is not None:
            return min(1, check(args.table, args.check, args))
        count = train(args.table, args)
    except UserError as error:
        print(f"idea_bank.py: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{count} runs trained; {len(read_runs(args.table))} in {args.table}")
    return 0


if __name__ == "__main__":
    lean_runs.pin()
    sys.exit(main())
