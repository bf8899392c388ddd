# SPDX-License-Identifier: Apache-2.0
"""Run directories as they grow: a card for each, and curves of those that somebody looks at.

Standard library only.  Text that a run holds is data: names are of registered metrics, the rest
goes to the page as text.
"""

import collections
import json
import math
import os
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlm.dash.curve import At, Curve
from jaxlm.dash.tail import CHUNK, Tail
from jaxlm.telemetry.registry import METRICS
from jaxlm.telemetry.writer import FILE_NAME

CARD_METRICS = ("train/loss_nats", "eval/bpb", "perf/tokens_per_s")
STATUSES = ("completed", "preempted", "diverged", "stopped", "crashed")
SPARK = 48  # points of the small curve beside a run's name
RECENT = 25  # updates whose median is the present speed
FRESH_S = 60.0  # a run without a lock that wrote within this time is going on
OPEN_RUNS = 24  # whose curves are kept in memory


class RunTail:
    """The telemetry of one run: a curve for each metric in `wanted` (None: for all)."""

    def __init__(self, directory: Path, wanted: Sequence[str] | None) -> None:
        self.tail = Tail(directory / FILE_NAME)
        self.wanted = wanted
        self.num_bad = 0
        self._clear()

    def _clear(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.last: dict[str, dict[str, Any]] = {"train": {}, "eval": {}}  # newest row of each kind
        self.at = At(0, 0.0, 0.0)
        self.step_times: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._restarts = self.tail.restarts

    def look(self, most: int = CHUNK) -> bool:
        """Takes in what is new; whether there was anything."""
        lines = self.tail.lines(most)
        if self.tail.restarts != self._restarts:
            self._clear()
        for line in lines:
            try:
                row = json.loads(line)
                kind, step = row["kind"], int(row["step"])
            except (ValueError, TypeError, KeyError):
                self.num_bad += 1
                continue
            if kind in self.last:
                self._take(kind, step, row)
        return bool(lines)

    @property
    def is_behind(self) -> bool:
        return self.tail.size > self.tail.at

    def _take(self, kind: str, step: int, row: dict[str, Any]) -> None:
        if kind == "train":
            if step <= self.at.step:  # resumed from a checkpoint: the last row of a step counts
                self._go_back(step)
            seconds = number_or_none(row.get("perf/step_time_s")) or 0.0
            self.step_times.append(seconds)
            tokens = number_or_none(row.get("data/tokens_seen"))
            self.at = At(step, tokens or 0.0, self.at.seconds + seconds)
        self.last[kind] = row
        at = self.at._replace(step=step)
        for name, value in row.items():
            if self.wanted is not None and name not in self.wanted:
                continue
            if name.partition("@")[0] in METRICS and len(name) < 80 and is_number(value):
                self.curves.setdefault(name, Curve()).add(at, float(value))

    def _go_back(self, step: int) -> None:
        for curve in self.curves.values():
            curve.cut(step)
        losses = self.curves.get("train/loss_nats", Curve()).stretches
        self.at = losses[-1].last if losses else At(0, 0.0, 0.0)


class Run:
    """One run directory, and what its card says of it."""

    def __init__(self, key: str, directory: Path) -> None:
        self.key, self.directory = key, directory
        self.tail = RunTail(directory, CARD_METRICS)
        self.config = read_object(directory / "config.json")
        self.card: dict[str, Any] = {}
        self._seen: tuple[Any, ...] | None = None

    def look(self, now: float, most: int = CHUNK) -> bool:
        """Reads what is new; whether the card says something else than before."""
        seen = (stamp(self.directory / "summary.json"), self.tail.tail.size, self._is_alive(now))
        if seen == self._seen and not self.tail.is_behind:
            return False
        self.tail.look(most)
        self._seen = seen
        card = self._card(is_alive=seen[-1])
        is_new, self.card = card != self.card, card
        return is_new

    def _is_alive(self, now: float) -> bool:
        """Whether the process that holds the run's lock is there; without a lock, whether it writes."""
        try:
            words = (self.directory / ".lock").read_text(encoding="utf-8").split()
            pid, host = int(words[1]), words[3]
        except (OSError, ValueError, IndexError):
            return now - (stamp(self.tail.tail.path) or 0) / 1e9 < FRESH_S
        if host != socket.gethostname():
            return now - (stamp(self.tail.tail.path) or 0) / 1e9 < FRESH_S
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def _card(self, is_alive: bool) -> dict[str, Any]:
        summary = read_object(self.directory / "summary.json")
        said = summary.get("status")
        status = said if said in STATUSES else "running" if is_alive else "killed"
        train, evals = self.tail.last["train"], self.tail.last["eval"]
        step = self.tail.at.step
        total = part(self.config, "train").get("num_steps")
        total = total if isinstance(total, int) and total > 0 else None
        times = [t for t in self.tail.step_times if t > 0]
        eta = None
        if status == "running" and times and total:
            eta = statistics.median(times) * max(0, total - step)
        speeds = self.tail.curves.get("perf/tokens_per_s", Curve()).means[-RECENT:]
        return {
            "key": self.key,
            "name": self.directory.name,
            "status": status,
            "step": step,
            "num_steps": total,
            "loss": number_or_none(train.get("train/loss_nats")),
            "bpb": number_or_none(evals.get("eval/bpb")),
            "tokens_per_s": statistics.median(y for _, y in speeds) if speeds else None,
            "eta_s": eta,
            "began": stamp(self.directory / "config.json") or 0,
            "spark": self._spark(),
            "has_report": (self.directory / "report.html").is_file(),
            "num_bad": self.tail.num_bad,
        }

    def _spark(self) -> list[float | None]:
        means = self.tail.curves.get("train/loss_nats", Curve()).means
        every = max(1, math.ceil(len(means) / SPARK))
        groups = [means[i : i + every] for i in range(0, len(means), every)]
        values = [[y for _, y in group if math.isfinite(y)] for group in groups]
        return [rounded(statistics.fmean(ys)) if ys else None for ys in values]


class Runs:
    """All runs below some folders, by key: "<index of the folder>/<name>"."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self.found: dict[str, Run] = {}
        self._open: collections.OrderedDict[str, RunTail] = collections.OrderedDict()

    def look(self, budget: int = 4 * CHUNK) -> tuple[list[str], list[str]]:
        """Keys of the runs whose cards changed, and of those that are gone.

        Newest runs are read first, at most about `budget` bytes in all; the rest the next time.
        """
        there = dict(self._directories())
        gone = [key for key in self.found if key not in there]
        for key in gone:
            del self.found[key]
            self._open.pop(key, None)
        new = [Run(key, path) for key, path in there.items() if key not in self.found]
        self.found |= {run.key: run for run in sorted(new, key=_age)}
        changed, now = [], time.time()
        for run in sorted(self.found.values(), key=_age):
            before = run.tail.tail.bytes_read
            if run.look(now, most=min(CHUNK, budget)):
                changed.append(run.key)
            budget -= run.tail.tail.bytes_read - before
            if budget <= 0:
                break
        return changed, gone

    def _directories(self) -> Iterator[tuple[str, Path]]:
        for index, folder in enumerate(self.folders):
            paths = [folder] if (folder / "config.json").is_file() else _below(folder)
            yield from ((f"{index}/{path.name}", path) for path in paths)

    def curves(self, key: str, patience_s: float = 2.0) -> RunTail | None:
        """All metrics of one run, read as far as the patience reaches; None for an unknown key."""
        run = self.found.get(key)
        if run is None:
            return None
        tail = self._open.setdefault(key, RunTail(run.directory, None))
        self._open.move_to_end(key)
        while len(self._open) > OPEN_RUNS:
            self._open.popitem(last=False)
        end = time.monotonic() + patience_s
        while tail.look() and time.monotonic() < end:
            pass
        return tail


def _below(folder: Path) -> list[Path]:
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [Path(e.path) for e in entries if os.path.isfile(os.path.join(e.path, "config.json"))]


def _age(run: Run) -> float:
    return -(stamp(run.directory / "config.json") or 0)


def stamp(path: Path) -> int | None:
    """When a file was last written, in nanoseconds; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; {} for anything else: a run may be damaged, and is shown all the same."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def part(config: dict[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 1 << 1000
    return isinstance(value, float)


def number_or_none(value: Any) -> float | None:
    """A finite number, or None: JSON has no word for the others."""
    return float(value) if is_number(value) and math.isfinite(value) else None


def rounded(value: float) -> float | None:
    """Six digits, which no eye can tell from sixteen; None where it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
