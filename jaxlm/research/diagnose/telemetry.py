# SPDX-License-Identifier: Apache-2.0
"""A run's telemetry as arrays: registered names and numbers, and nothing else that a row may hold.

Text in rows never gets past this file, but for the names of known events.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import RunConfig
from jaxlm.core.errors import RunError
from jaxlm.research.diagnose.expected import expected_lr
from jaxlm.telemetry.registry import METRICS
from jaxlm.telemetry.writer import read_rows
from jaxlm.train.run_dir import load_config

EVENTS = ("resumed", "refused", "damaged", "preempted")
AGAINST = "against:"
EXPECTED_LR = "expected:optim/lr"  # what the config asks for
SUFFIX = re.compile(r"[A-Za-z0-9_-]{1,40}")  # of grad/norm_l2@layer_3, eval/bpb@web


class Series(NamedTuple):
    """(n,) steps, ascending, and (n,) values, which may be NaN or infinite."""

    steps: np.ndarray
    values: np.ndarray

    def between(self, first: int, last: int) -> "Series":
        """The rows of the steps first..last, both included."""
        inside = (self.steps >= first) & (self.steps <= last)
        return Series(self.steps[inside], self.values[inside])


EMPTY = Series(np.zeros(0, np.int64), np.zeros(0))


@dataclasses.dataclass(frozen=True)
class Telemetry:
    """What a diagnosis may look at."""

    config: RunConfig
    series: Mapping[str, Series]  # by registered name
    events: Mapping[str, tuple[int, ...]]  # steps of each known event
    against: "Telemetry | None" = None

    def get(self, metric: str) -> Series:
        """The rows of a metric or of an expression (findings.Evidence); empty where there are none."""
        for sign in (" / ", " - "):
            left, found, right = metric.partition(sign)
            if found:
                return _joined(self._one(left), self._one(right), sign.strip())
        return self._one(metric)

    def _one(self, name: str) -> Series:
        if name.startswith(AGAINST):
            return EMPTY if self.against is None else self.against._one(name[len(AGAINST) :])
        if name == EXPECTED_LR:
            steps = self._one("optim/lr").steps
            return Series(steps, expected_lr(self.config, steps))
        return self.series.get(name, EMPTY)

    def parts(self, metric: str) -> list[str]:
        """What stands behind the "@" of a metric's names: layers, groups or corpora."""
        heads = (name.partition("@") for name in self.series)
        return sorted((part for head, _, part in heads if head == metric and part), key=_natural)

    @property
    def last_step(self) -> int:
        """Of the last update."""
        steps = self._one("train/loss_nats").steps
        return int(steps[-1]) if len(steps) else 0


def _natural(part: str) -> tuple[str, int]:
    name, _, index = part.rpartition("_")
    return (name, int(index)) if index.isdigit() else (part, -1)


def _joined(left: Series, right: Series, sign: str) -> Series:
    steps, at_left, at_right = np.intersect1d(left.steps, right.steps, return_indices=True)
    a, b = left.values[at_left], right.values[at_right]
    with np.errstate(all="ignore"):
        return Series(steps, a / b if sign == "/" else a - b)


def read_telemetry(run_dir: Path, against: Path | None = None) -> Telemetry:
    """Raises RunError for a directory that is no run, has no updates yet, or is damaged."""
    found = from_rows(load_config(run_dir), read_rows(run_dir))
    if not found.last_step:
        raise RunError(f"{run_dir} has no updates yet; diagnose it once it trains")
    other = None if against is None else read_telemetry(against)
    return dataclasses.replace(found, against=other)


def from_rows(config: RunConfig, rows: Iterable[Mapping[str, Any]]) -> Telemetry:
    """Of a step that was written twice the last row counts, as after a resume."""
    columns: dict[str, dict[int, float]] = {}
    events: dict[str, list[int]] = {name: [] for name in EVENTS}
    for row in rows:
        step, kind = row["step"], row["kind"]
        if kind == "event":
            if row.get("event") in EVENTS:
                events[row["event"]].append(step)
            continue
        for name, value in row.items():
            if is_registered(name) and (isinstance(value, float) or _is_count(value)):
                columns.setdefault(name, {})[step] = float(value)
    return Telemetry(
        config,
        {name: _series(column) for name, column in columns.items()},
        {name: tuple(steps) for name, steps in events.items()},
    )


def is_registered(name: str) -> bool:
    """Whether a metric's name is known, and its part too short and plain to be a sentence."""
    head, at, part = name.partition("@")
    return head in METRICS and (not at or SUFFIX.fullmatch(part) is not None)


def _is_count(value: Any) -> bool:
    """A whole number that a float can hold, or a truth value."""
    return isinstance(value, int) and abs(value) < 1 << 1000


def _series(column: dict[int, float]) -> Series:
    steps = sorted(column)
    return Series(np.array(steps, np.int64), np.array([column[step] for step in steps]))
