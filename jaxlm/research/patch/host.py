# SPDX-License-Identifier: Apache-2.0
"""Trains a patched arm from outside the sandbox, which gets one batch at a time and nothing else.

So it cannot see validation text, take other data, choose a seed's order or make another number of
updates on new data.  What it could do is work longer on what it has: its processor time is counted from
outside and compared with what the clean code takes.  Its losses and counts are claims.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import RunConfig
from jaxlm.core.canonical import file_sha256, to_jsonable, write_json_atomic
from jaxlm.core.errors import RunError
from jaxlm.data.loader import BatchSource
from jaxlm.data.prepare import prepare
from jaxlm.research.desk.quoting import plain
from jaxlm.research.jobs import JobRun, program_id
from jaxlm.research.patch.diff import patch_id, patched_copy
from jaxlm.research.sandbox import sandbox
from jaxlm.research.sandbox.sandbox import Limits, Process, Result, Talk
from jaxlm.sharding.config import MeshConfig
from jaxlm.train.run_dir import CHECKPOINTS

BATCH = ("tokens", "targets", "segment_ids", "positions", "weights")  # as guest.BATCH
WARM = 2  # updates in which the guest compiles
REFERENCE = 20  # updates of the clean code, to know what one takes
FAIR_TIME = 1.5  # processor time, as a multiple of the clean code's; more buys gains
LEAST_S = 2.0  # of processor time: below it the comparison is noise
MOST_PARAMS_BYTES = 4 << 30
START_S = 600.0  # to import and compile
GRACE_S = 3.0  # to end by itself, once it answers no more


@dataclasses.dataclass(frozen=True)
class Fed:
    """What came of feeding batches to a guest.  `claims` and `losses` are its own words."""

    losses: list[float]
    claims: dict[str, float]  # params; flops of the products of one update
    update_s: float  # processor seconds of one update, seen from outside
    end_s: float  # and after the last
    params: bytes
    level: sandbox.Level

    def expected_s(self, updates: int) -> float:
        """What so many updates take, after the first ones."""
        return (updates - WARM) * self.update_s + self.end_s


def guest_command(code: Path, folder: Path) -> list[str]:
    """Runs the copy's guest.py with the copy before everything else that could be imported."""
    start = (
        f"import sys; sys.path.insert(0, {str(code)!r}); from pathlib import Path; "
        f"from jaxlm.research.patch import guest; guest.main(Path({str(folder)!r}))"
    )
    return [sys.executable, "-c", start]


def guest_config(config: RunConfig) -> RunConfig:
    """On one device, and without probes, whose compilation takes as long as the rest."""
    train = dataclasses.replace(config.train, probe_every=None)
    return dataclasses.replace(config, mesh=MeshConfig(), train=train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guest:
    """Code that nobody trusts, ready to be started behind the walls."""

    command: Sequence[str]
    folder: Path  # the only place where it can write
    readable: Sequence[Path] = ()
    limits: Limits
    is_weaker_allowed: bool


@contextlib.contextmanager
def new_guest(
    diff: str | None, spec: dict[str, Any], limits: Limits, is_weaker_allowed: bool,
    readable: Sequence[Path] = (),
) -> Iterator[Guest]:  # fmt: skip
    """A guest of patched code that shares nothing with any before it; None: of the clean code."""
    with patched_copy(diff) as code, tempfile.TemporaryDirectory(prefix="jaxlm-guest-") as name:
        folder = Path(name)
        (folder / "spec.json").write_text(json.dumps(to_jsonable(spec)))
        yield Guest(
            command=guest_command(code, folder), folder=folder, readable=[code, *readable],
            limits=limits, is_weaker_allowed=is_weaker_allowed,
        )  # fmt: skip


def converse(guest: Guest, talk: Talk) -> Result:
    """Raises RunError for a guest that ends before the talk does, or badly."""
    is_early = False

    def whole(process: Process) -> None:
        nonlocal is_early
        try:
            talk(process)
        except (BrokenPipeError, EOFError):
            is_early = True  # why, the end of its process tells; it has a moment to come to it
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            sandbox.kill(process)

    found = sandbox.run(
        guest.command, guest.folder, guest.readable, guest.limits, guest.is_weaker_allowed, whole
    )
    if found.ended_by is not None:
        raise RunError(f"the patched code was ended: it took too much {found.ended_by}")
    if found.code > 0 and not (is_early and not found.output.strip()):
        last = (found.output.strip().splitlines() or ["it said nothing"])[-1]
        raise RunError(f"the patched code failed: {plain(last)}")
    if is_early or found.code:
        raise RunError("the patched code ended before it had answered")
    return found


def read(process: Process, size: int) -> bytes:
    """Raises EOFError for less."""
    assert process.stdout is not None
    found = process.stdout.read(size)
    if len(found) < size:
        raise EOFError
    return found


def finish(process: Process) -> None:
    """Raises RunError for a guest that has more to say than it was asked."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    if process.stdout.read(1):
        raise RunError("the patched code answered more than it was asked")


def write(process: Process, data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def feed(
    config: RunConfig, diff: str | None, updates: int, is_weaker_allowed: bool,
    tell: Callable[[int], None] = lambda step: None, most_s: float = math.inf,
) -> Fed:  # fmt: skip
    """Trains for `updates` updates of a config, the whole run or less.

    most_s:  processor seconds of everything after the first updates
    Raises RunError for a guest that fails, cheats or takes too long.
    """
    data = prepare(config.data)
    source = BatchSource(data, config.data)
    spec = {
        "what": "train",
        "config": guest_config(config),
        "vocab": data.row_format.vocab_size,
    }
    bound = 1e6 if math.isinf(most_s) else most_s
    limits = Limits(wall_s=START_S + 20 * bound, cpu_s=int(START_S + 2 * bound))
    with new_guest(diff, spec, limits, is_weaker_allowed) as guest:
        return feed_guest(guest, source.batch, updates, tell, most_s)


def feed_guest(
    guest: Guest, batch_of: Callable[[int], Mapping[str, np.ndarray]], updates: int,
    tell: Callable[[int], None] = lambda step: None, most_s: float = math.inf,
) -> Fed:  # fmt: skip
    """As `feed`, of any guest: it is given each batch once, and asked for a loss before the next."""
    losses: list[float] = []
    claims: dict[str, float] = {}
    marks: list[float] = []

    def talk(process: Process) -> None:
        for step in range(updates):
            batch = batch_of(step)
            write(process, b"".join(np.ascontiguousarray(batch[name]).tobytes() for name in BATCH))
            if step == 0:
                claims.update(_claims(process))
            losses.append(struct.unpack("<f", read(process, 4))[0])
            if step + 1 in (min(WARM, updates), updates):
                marks.append(sandbox.cpu_s(process.pid))
            tell(step + 1)
            if not math.isfinite(losses[-1]):
                return
        finish(process)

    found = converse(guest, talk)
    params = _taken(guest.folder / "params.npy")
    first, last = (marks or [0.0])[0], (marks or [0.0])[-1]
    spent = found.cpu_s - first
    if spent > max(most_s, LEAST_S):
        raise RunError(
            f"the patched code took {spent:.1f} s of processor time where {most_s / FAIR_TIME:.1f} s are "
            f"the clean code's: more than {FAIR_TIME} times as much work buys gains"
        )
    update_s = (last - first) / max(updates - WARM, 1)
    return Fed(losses, claims, update_s, found.cpu_s - last, params, found.level)


def _claims(process: Process) -> dict[str, float]:
    assert process.stdout is not None
    line = process.stdout.readline(4096)
    if not line:
        raise EOFError
    try:
        told = json.loads(line)
        claims = {name: float(told[name]) for name in ("params", "flops")}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        claims = {"": math.nan}
    if not all(0 <= claim < math.inf for claim in claims.values()):
        raise RunError("the patched code gave no counts of its parameters and FLOPs")
    return claims


def _taken(path: Path) -> bytes:
    """A guest's file, read without following a link.  Never unpickled: only guests load it."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise RunError("the patched code left no parameters") from None
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise RunError("the patched code left something else than a file of parameters")
    with open(opened, "rb") as file:
        data = file.read(MOST_PARAMS_BYTES + 1)
    if len(data) > MOST_PARAMS_BYTES:
        raise RunError(f"the patched code left parameters of more than {MOST_PARAMS_BYTES:,} bytes")
    return data


_REFERENCES: dict[str, Fed] = {}  # of this process, by program


def reference(config: RunConfig, is_weaker_allowed: bool) -> Fed:
    """A few updates of the clean code behind the same walls, on this machine, now."""
    name = program_id(config)
    if name not in _REFERENCES:
        updates = min(REFERENCE, config.train.num_steps)
        _REFERENCES[name] = feed(config, None, updates, is_weaker_allowed)
    return _REFERENCES[name]


def train_patched(run: JobRun, tell: Callable[[int], None]) -> None:
    """A whole run into its directory; begun anew where one was interrupted.

    Raises RunError where the walls do not stand, or for a guest that fails or cheats.
    """
    assert run.diff is not None
    config, updates, start = run.config, run.config.train.num_steps, time.perf_counter()
    if run.until is not None:
        raise RunError("a patched run cannot be stopped and continued; leave the policy out")
    clean = reference(config, run.is_weaker_allowed)
    expected_s = clean.expected_s(updates)
    most_s = FAIR_TIME * expected_s
    found = feed(config, run.diff, updates, run.is_weaker_allowed, tell, most_s)
    folder = run.directory
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint = folder / CHECKPOINTS / f"{updates:08d}"
    checkpoint.mkdir(parents=True)
    write_json_atomic(folder / "config.json", config)
    rows = [
        {"kind": "train", "step": i, "train/loss_nats": loss}
        for i, loss in enumerate(found.losses, start=1)
    ]
    (folder / "telemetry.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = {
        "data_id": prepare(config.data).data_id, "patch": patch_id(run.diff),
        "walls": found.level, "claims": found.claims, "clean": clean.claims,
        "processor_time": (updates - WARM) * found.update_s + found.end_s,
        "processor_time_of_clean_code": expected_s,
    }  # fmt: skip
    write_json_atomic(folder / "env.json", env)
    (checkpoint / "params.npy").write_bytes(found.params)
    manifest = {"patch": env["patch"], "params_sha256": file_sha256(checkpoint / "params.npy")}
    write_json_atomic(checkpoint / "manifest.json", manifest)
    is_sound = all(map(math.isfinite, found.losses))
    summary = {
        "status": "completed" if is_sound else "diverged", "step": len(rows), "final": None,
        "wall_time_s": time.perf_counter() - start, "tokens_per_s": None,
    }  # fmt: skip
    write_json_atomic(folder / "summary.json", summary)
