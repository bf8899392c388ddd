# SPDX-License-Identifier: Apache-2.0
"""`jaxlm bench WHAT`: figures with the command that made them."""

import argparse
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from jaxlm.cli.common import (
    add_config_arguments,
    add_device_arguments,
    check_outputs,
    set_up_devices,
)
from jaxlm.core.errors import ConfigError
from jaxlm.core.typed import nearest

MOST_RUNS = 10_000  # of a budget: a policy that spends them takes half a minute in one world
MOST_WORLDS = 100_000
MOST_SIZES = 16  # block sizes of one kernel that a search tries
GATE_RUNS = (32, 64, 128)  # at the larger scale
WHAT = {
    "step": "the bare jitted step: tokens/s, share of the machine's matrix limit, where time goes",
    "loop": "the real loop as a share of the bare step, and recompilations",
    "loader": "batches from disk: tokens/s",
    "members": "eight runs of one shape: in turn, or together in one vmapped program",
    "start": "CPU time of --help; seconds to the first update, cold and warm",
    "policies": "ways to choose among ideas, at equal compute, where the truth is known (no config)",
    "calibration": "how often verdicts err where there is nothing to find (no config)",
    "diagnose": "planted faults in real tiny runs, kept on disk: what `jaxlm diagnose` finds (no config)",
    "attacks": "attacks on scorer, gates and sandbox, which must be blocked, and honest patches (no config)",
    "kernels": "TPU kernels beside the public ones, predicted from the compiler's schedule (no config)",
}
CONFIGURED = ("step", "loop", "loader", "members", "start")
LEAST_STEPS = {"step": 2, "loop": 4, "loader": 1, "members": 3}
READERS = {  # option -> who reads it; any other would pass over it in silence
    "shapes": ("kernels",),
    "chips": ("kernels",),
    "kernels": ("kernels",),
    "sweep": ("kernels",),
    "tune": ("kernels",),
    "most": ("kernels",),
    "gpu": ("kernels",),
    "policies": ("policies",),
    "worlds": ("policies",),
    "budgets": ("policies",),
    "bank": ("policies", "calibration"),
    "html": ("policies",),
    "json": ("kernels", "diagnose"),
    "runs": ("diagnose",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=WHAT, help="; ".join(f"{k}: {v}" for k, v in WHAT.items()))
    add_config_arguments(parser, nargs="*")
    parser.add_argument(
        "--steps", type=int, default=20, help="updates or batches (default %(default)s)"
    )
    group = parser.add_argument_group(
        "kernels", "lists are comma-separated, default: all; a kernel is operation/direction/name"
    )
    for what in ("shapes", "chips", "kernels"):
        group.add_argument(f"--{what}", type=lambda text: text.split(","), metavar="NAME,...")
    group.add_argument(
        "--json", metavar="FILE", help="write all figures there too; diagnose as well"
    )
    for flag, text in (
        ("sweep", "try block sizes of public kernels, keep the best"),
        ("tune", "try block sizes of our kernels, rewrite their tables"),
        ("gpu", "measure attention on this machine's GPU instead"),
    ):
        group.add_argument(f"--{flag}", action="store_true", default=None, help=text)
    group.add_argument(
        "--most", type=int, metavar="N", help=f"block sizes to try of each (default {MOST_SIZES})"
    )
    group = parser.add_argument_group("policies")
    for what in ("policies", "worlds", "budgets"):
        group.add_argument(f"--{what}", type=lambda text: text.split(","), metavar="A,...")
    group.add_argument(
        "--count", type=int, default=50, help="worlds drawn of each kind (default %(default)s)"
    )
    group.add_argument(
        "--bank", metavar="FILE",
        help="policies: replay this idea bank instead of worlds; calibration: real A/A comparisons too",
    )  # fmt: skip
    group.add_argument("--html", metavar="FILE", help="write curves over the budget there")
    group = parser.add_argument_group("diagnose")
    group.add_argument(
        "--seeds",
        type=int,
        default=5,
        help="of each kind and severity, 1 to 5 (default %(default)s)",
    )
    group.add_argument("--runs", type=Path, metavar="DIR", help="where trained runs are kept")
    group.add_argument("--only-score", action="store_true", help="train nothing")
    group = parser.add_argument_group("attacks")
    group.add_argument(
        "--trained", type=int, default=1, metavar="N",
        help="honest patches that are trained and judged too, a minute each (default %(default)s)",
    )  # fmt: skip
    add_device_arguments(parser)


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError for what is out of range, cannot be written or would not be read."""
    if args.config and args.what not in CONFIGURED:
        raise ConfigError(f"bench {args.what} takes no config, got {args.config[0]}")
    for option, readers in READERS.items():
        if getattr(args, option) is not None and args.what not in readers:
            raise ConfigError(f"--{option} is of bench {' and '.join(readers)}, not of {args.what}")
    least = LEAST_STEPS.get(args.what, args.steps)
    if args.steps < least:
        raise ConfigError(f"--steps must be >= {least}, got {args.steps}")
    _check_kernels(args)
    check_outputs(args.json, args.html)


def _check_kernels(args: argparse.Namespace) -> None:
    """Raises ConfigError for options of bench kernels of which one would be passed over."""
    if args.most is not None and args.most < 1:
        raise ConfigError(f"--most must be >= 1, got {args.most}")
    if args.most is not None and not (args.tune or args.sweep):
        raise ConfigError("--most is of --tune and --sweep; add one of them")
    for mode, others in (
        ("gpu", ("shapes", "chips", "kernels", "json", "tune", "sweep")),
        ("tune", ("sweep",)),
    ):
        given = [name for name in others if getattr(args, name)]
        if getattr(args, mode) and given:
            raise ConfigError(f"--{given[0]} does not go with --{mode}; leave one of them out")


def run(args: argparse.Namespace) -> int:
    _check(args)
    if args.what == "kernels" and args.gpu:
        set_up_devices(args)
        return _run_gpu_kernels()
    if args.what == "kernels":
        return _run_kernels(args)
    if args.what == "calibration":
        return _run_calibration(args)
    if args.what == "attacks":
        return _run_attacks(args)
    if args.what == "diagnose":
        return _run_diagnose(args)
    if args.what == "policies":
        return _run_policies(args)
    if not args.config:
        raise ConfigError(f"bench {args.what} needs a config, such as configs/tiny_decoder.gin")
    from jaxlm.cli.gin_edge import load
    from jaxlm.telemetry.display import make_display

    config = load(args.config, args.overrides)
    if args.what == "start":
        from jaxlm.bench.start import bench_start

        table = bench_start(args.config, args.overrides)
    elif args.what == "loader":
        from jaxlm.bench.loader import bench_loader

        table = bench_loader(config, args.steps)
    else:
        set_up_devices(args)
        if args.what == "members":
            from jaxlm.bench.members import bench_members

            table = bench_members(config, args.steps)
        elif args.what == "step":
            from jaxlm.bench.step import bench_step

            table = bench_step(config, args.steps)
        else:
            from jaxlm.bench.loop import bench_loop

            table = bench_loop(config, args.steps)
    from jaxlm.train.code_id import code_id

    table |= {
        "command": shlex.join(["jaxlm", *sys.argv[1:]]),
        "commit": commit_line(code_id()),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
    }
    make_display().table(f"bench {args.what}", table)
    return 0


def commit_line(code: dict[str, Any]) -> str:
    if code["commit"] is None:
        return "not a git checkout"
    return code["commit"] + (", with changes" if code["dirty_sha256"] else "")


def _run_attacks(args: argparse.Namespace) -> int:
    if args.trained < 0:
        raise ConfigError(f"--trained must be >= 0, got {args.trained}")
    set_up_devices(args)
    from jaxlm.bench.attacks.suite import bench_attacks, exit_code, table
    from jaxlm.cli.gin_edge import load
    from jaxlm.telemetry.display import make_display

    read = lambda files, overrides: load(list(files), list(overrides))
    with make_display() as display:
        rows = bench_attacks(read, args.trained, display.progress)
    print("\n".join(table(rows)))
    return exit_code(rows)


def _run_diagnose(args: argparse.Namespace) -> int:
    if not 1 <= args.seeds <= 5:
        raise ConfigError(f"--seeds must be 1 to 5, got {args.seeds}")
    if not args.only_score:
        set_up_devices(args)
    from jaxlm.bench.diagnose import bench_diagnose
    from jaxlm.bench.faults.suite import default_folder
    from jaxlm.telemetry.display import make_display

    folder = args.runs or default_folder()
    with make_display() as display:
        lines, figures = bench_diagnose(folder, args.seeds, display.progress, not args.only_score)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


def _run_policies(args: argparse.Namespace) -> int:
    from jaxlm.bench.policies import bench_bank, bench_simulated, curves, table
    from jaxlm.research.bank import read_bank
    from jaxlm.research.policies.catalogue import POLICIES, policy
    from jaxlm.research.simulate import WORLDS
    from jaxlm.telemetry.display import make_display

    names = args.policies or [name for name in POLICIES if name != "asha"]  # an extra, and slow
    for name in names:
        policy(name)
    worlds = args.worlds or list(WORLDS)
    if unknown := [name for name in worlds if name not in WORLDS]:
        raise ConfigError(f"--worlds: unknown {unknown[0]!r}; {nearest(unknown[0], WORLDS)}")
    budgets = [_positive(text, "--budgets", MOST_RUNS) for text in args.budgets or ["125"]]
    count = int(_positive(str(args.count), "--count", MOST_WORLDS))
    with make_display() as display:
        if args.bank:
            rows = bench_bank(names, read_bank(Path(args.bank)), budgets, count, display.progress)
        else:
            rows = bench_simulated(names, worlds, budgets, count, display.progress)
    if args.html:
        Path(args.html).write_text(curves(rows), encoding="utf-8")
    print("\n".join(table(rows)))
    if args.bank:
        _replay_bank(Path(args.bank), max(budgets), count)
    return 0


def _replay_bank(path: Path, budget: float, count: int) -> None:
    from jaxlm.bench.bank_replay import replay_gate, replay_stops, table
    from jaxlm.research.bank import read_bank

    bank = read_bank(path)
    gates = [replay_gate(bank, runs, count) for runs in GATE_RUNS if len(bank.losses) > 1]
    print("\n".join(table(replay_stops(bank, budget, count), gates)))


def _run_calibration(args: argparse.Namespace) -> int:
    from jaxlm.bench.calibration import bench_real, bench_simulated, table
    from jaxlm.research.bank import read_bank

    count = int(_positive(str(args.count), "--count", MOST_WORLDS))
    bank = read_bank(Path(args.bank)) if args.bank else None  # a mistake ends here
    rows = bench_simulated(max(count, 1000))
    if bank is not None:
        rows += bench_real(bank)
    print("\n".join(table(rows)))
    return 0 if all(row.is_fit for row in rows) else 1


def _positive(text: str, flag: str, most: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= most:
        raise ConfigError(f"{flag} must be numbers >= 1, at most {most}, got {text!r}")
    return value


def _run_gpu_kernels() -> int:
    from jaxlm.bench.gpu_attention import bench_gpu, table
    from jaxlm.telemetry.display import make_display

    with make_display() as display:
        rows = bench_gpu(display.progress)
    print("\n".join(table(rows)))
    return 0


def _run_kernels(args: argparse.Namespace) -> int:
    from jaxlm.bench.kernel_tables import check_tables
    from jaxlm.bench.kernels import bench_kernels, choices, combinations, selected, table
    from jaxlm.telemetry.display import make_display

    check_tables()
    names = {what: selected(all_, getattr(args, what), what) for what, all_ in choices().items()}
    todo = combinations(**names)
    if not todo:
        asked = ", ".join(args.kernels or ["any operation"])
        raise ConfigError(f"no kernel of {asked} takes the shapes {', '.join(names['shapes'])}")
    if args.sweep or args.tune:
        return _search_blocks(args, todo)
    with make_display() as display:
        rows = bench_kernels(todo, display.progress)
    _write_rows(args.json, rows)
    print("\n".join(table(rows)))
    return 0


def _write_rows(path: str | None, rows: list[Any]) -> None:
    if path:
        from jaxlm.bench.kernels import as_json

        text = as_json(rows, shlex.join(["jaxlm", *sys.argv[1:]])) + "\n"
        Path(path).write_text(text, encoding="utf-8")


def _search_blocks(args: argparse.Namespace, todo: list[tuple[str, str, str]]) -> int:
    from jaxlm.bench.kernel_list import KERNELS
    from jaxlm.bench.kernel_tuning import keep_best_public, keep_ours, search, search_table
    from jaxlm.telemetry.display import make_display

    is_kept = lambda kernel, shape: kernel.has_row(shape) if args.tune else not kernel.is_ours
    searched = [
        at for at in todo if is_kept(KERNELS[at[0]], at[1]) and KERNELS[at[0]].tried(*at[1:])
    ]
    if not searched:
        names = ", ".join(dict.fromkeys(kernel for kernel, *_ in todo))
        whose = "our" if args.tune else "public"
        raise ConfigError(
            f"--{'tune' if args.tune else 'sweep'} finds nothing to keep: no table of {whose} block "
            f"sizes has rows of {names} at these shapes"
        )
    with make_display() as display:
        rows = search(searched, args.most or MOST_SIZES, display.progress)
    _write_rows(args.json, rows)
    print("\n".join(search_table(rows)))
    (keep_ours if args.tune else keep_best_public)(rows)
    tried = {kernel for kernel, *_ in searched}
    left = dict.fromkeys(kernel for kernel, *_ in todo if args.kernels and kernel not in tried)
    if left:
        print(f"not searched, as no row would be kept: {', '.join(left)}")
    return 0
