# SPDX-License-Identifier: Apache-2.0
"""Trains the idea bank: every idea of ideas.toml, over many seeds at two scales, into one table.

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
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxlm.cli.common import check_outputs
from jaxlm.cli.gin_edge import load
from jaxlm.config import RunConfig, resolve
from jaxlm.core.canonical import write_atomic, write_json_atomic
from jaxlm.core.errors import ConfigError, DataError, UserError
from jaxlm.core.typed import nearest
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
LIST = tomllib.loads(Path(__file__).with_name("ideas.toml").read_text(encoding="utf-8"))
SCALES: list[list[str]] = LIST["scales"]  # each: what it changes for the baseline and every idea
IDEAS: dict[str, dict[str, list[str]]] = LIST["ideas"]


def settings(scale: int, overrides: Sequence[str] = (), config: str = CONFIG) -> list[Setting]:
    """The baseline and every idea that changes it."""
    base = [*SCALES[scale], *overrides]
    found = [Setting(BASELINE, {}, load([config], base))]
    for name, idea in IDEAS.items():
        changes = idea["at_larger"] if scale and "at_larger" in idea else idea["changes"]
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
    if not told:
        raise DataError(f"{table} holds no run to check; train some first, without --check")
    known = {key[:2] for key in told}
    arms = {
        (s.name, scale): s
        for scale in range(len(SCALES))
        for s in settings(scale, args.set, args.config)
        if (s.name, scale) in known
    }
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


def refuse_slips(args: argparse.Namespace) -> None:
    """Raises ConfigError for an option out of range, before anything is trained."""
    check_outputs(args.table)
    if args.check is not None and not 0 < args.check <= 1:
        raise ConfigError(f"--check must be above 0, at most 1, got {args.check}")
    if args.seeds < 1:
        raise ConfigError(f"--seeds must be >= 1, got {args.seeds}")
    for name in args.only or ():
        if name not in (BASELINE, *IDEAS):
            raise ConfigError(f"--only {name!r} is no idea; {nearest(name, IDEAS)}")


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
        refuse_slips(args)
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
