# SPDX-License-Identifier: Apache-2.0
"""Computes every citation anew from telemetry.jsonl, by other means than the detectors.

Shares no code with statistics.py or telemetry.py: plain Python over the rows of the file.
Standard library only.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.research.diagnose.findings import Evidence, Finding
from jaxlm.telemetry.writer import read_rows
from jaxlm.train.run_dir import load_config

Rows = Sequence[Mapping[str, Any]]
TOLERANCE = 1e-6  # relative


def verify(findings: Iterable[Finding], run_dir: Path, against: Path | None = None) -> list[str]:
    """What does not hold, a line each; [] when every citation does.

    Raises RunError as `diagnose` for directories that cannot be read.
    """
    other = None if against is None else (load_config(against), list(read_rows(against)))
    return verify_rows(findings, load_config(run_dir), list(read_rows(run_dir)), other)


def verify_rows(
    findings: Iterable[Finding],
    config: RunConfig,
    rows: Rows,
    against: tuple[RunConfig, Rows] | None = None,
) -> list[str]:
    """As `verify`, of rows in memory."""
    problems = []
    for found in findings:
        for evidence in (*found.evidence, *found.counter_evidence):
            problem = _check(evidence, config, rows, against)
            if problem is not None:
                problems.append(
                    f"{found.cause}: {evidence.statistic} of {evidence.metric}: {problem}"
                )
    return problems


def _check(
    e: Evidence, config: RunConfig, rows: Rows, against: tuple[RunConfig, Rows] | None
) -> str | None:
    column = _expression(e.metric, config, rows, against)
    values = [value for step, value in column if e.first_step <= step <= e.last_step]
    if e.statistic not in _COMPUTE:
        return "no such statistic"
    if e.statistic != "not_finite":
        values = [value for value in values if math.isfinite(value)]
    if not values:
        return "no rows"
    value = _COMPUTE[e.statistic](values)
    same = value == e.value or math.isclose(value, e.value, rel_tol=TOLERANCE, abs_tol=1e-9)
    if not same:
        return f"is {value:.9g}, not {e.value:.9g}"
    if (e.value > e.threshold) if e.direction == "above" else (e.value < e.threshold):
        return None
    return f"{e.value:.9g} is not {e.direction} {e.threshold:.9g}"


def _expression(
    metric: str, config: RunConfig, rows: Rows, against: tuple[RunConfig, Rows] | None
) -> list[tuple[int, float]]:
    for sign in (" / ", " - "):
        if sign in metric:
            left, right = (_column(m, config, rows, against) for m in metric.split(sign, 1))
            return [
                (step, _divide(a, right[step]) if sign == " / " else a - right[step])
                for step, a in sorted(left.items())
                if step in right
            ]
    return sorted(_column(metric, config, rows, against).items())


def _divide(a: float, b: float) -> float:
    if b == 0:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a)
    return a / b


def _column(
    name: str, config: RunConfig, rows: Rows, against: tuple[RunConfig, Rows] | None
) -> dict[int, float]:
    if name.startswith("against:"):
        return {} if against is None else _column(name.removeprefix("against:"), *against, None)
    if name == "expected:optim/lr":
        return {step: _lr(config, step) for step in _column("optim/lr", config, rows, None)}
    found: dict[int, float] = {}
    for row in rows:
        value = row.get(name)
        is_count = isinstance(value, int) and -(10**300) < value < 10**300
        if row["kind"] != "event" and (is_count or isinstance(value, float)):
            found[row["step"]] = float(value or 0)
    return found


def _lr(config: RunConfig, update: int) -> float:
    """Told once more, straight from the table of optim/schedule.py."""
    o, end = config.optim, config.train.num_steps
    warm = update / o.warmup_steps if update < o.warmup_steps else 1.0
    begin = {
        "constant": end,
        "linear": o.warmup_steps,
        "cosine": o.warmup_steps,
        "wsd": max(o.warmup_steps, end - o.decay_frac * end),
    }[o.schedule]
    if o.schedule == "constant" or update <= begin:
        return o.peak_lr * warm
    done = min((update - begin) / (end - begin), 1.0)
    left = (1 + math.cos(math.pi * done)) / 2 if o.schedule == "cosine" else 1 - done
    return o.peak_lr * warm * (o.final_lr_frac + (1 - o.final_lr_frac) * left)


def _quarter(values: list[float], late: bool) -> float:
    count = max(1, len(values) // 4)
    return statistics.median(values[len(values) - count :] if late else values[:count])


def _growth(values: list[float]) -> float:
    early = _quarter(values, False)
    return _quarter(values, True) / early if early else math.inf


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _slope(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope


def _autocorrelation(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    square = math.fsum((x - mean) ** 2 for x in values)
    lags = range(1, min(9, len(values)))
    if not square or not lags:
        return 0.0
    products = [
        math.fsum((values[i] - mean) * (values[i - lag] - mean) for i in range(lag, len(values)))
        for lag in lags
    ]
    return math.fsum(products) / len(lags) / square


def _z(values: list[float]) -> list[float]:
    found = [0.0] * min(12, len(values))
    for i in range(12, len(values)):
        before = values[max(0, i - 32) : i]
        middle = statistics.median(before)
        spread = 1.4826 * statistics.median(abs(x - middle) for x in before)
        found.append((values[i] - middle) / max(spread, abs(middle) / 1000, 1e-12))
    return found


def _spikes(values: list[float]) -> float:
    high = [z > 6 for z in _z(values)]
    return float(sum(h and not any(high[max(0, i - 4) : i]) for i, h in enumerate(high)))


_COMPUTE: Mapping[str, Callable[[list[float]], float]] = {
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "min": min,
    "max": max,
    "mean": statistics.fmean,
    "median": statistics.median,
    "early": lambda x: _quarter(x, False),
    "late": lambda x: _quarter(x, True),
    "growth": _growth,
    "rise": lambda x: _quarter(x, True) - _quarter(x, False),
    "spread": lambda x: _divide(_quantile(x, 0.9), _quantile(x, 0.1)),
    "slope": _slope,
    "autocorrelation": _autocorrelation,
    "count": lambda x: float(len(x)),
    "spikes": _spikes,
    "share_above_double": lambda x: sum(v > 2 * statistics.median(x) for v in x) / len(x),
    "largest_spike": lambda x: max(_z(x)),
    "not_finite": lambda x: float(sum(not math.isfinite(v) for v in x)),
}
