# SPDX-License-Identifier: Apache-2.0
"""How a detector says what it saw: a citation, whether it holds, and the finding made of several."""

from jaxlm.research.diagnose.causes import Severity
from jaxlm.research.diagnose.findings import Direction, Evidence, Finding, NextTest
from jaxlm.research.diagnose.statistics import compute
from jaxlm.research.diagnose.telemetry import Telemetry


def cite(
    t: Telemetry,
    metric: str,
    statistic: str,
    direction: Direction,
    threshold: float,
    first: int | None = None,
    last: int | None = None,
) -> Evidence | None:
    """The citation if it holds, else None; over all rows unless told which steps."""
    series = t.get(metric)
    if first is not None or last is not None:
        whole = (series.steps[0], series.steps[-1]) if len(series.steps) else (0, 0)
        first, last = (w if f is None else f for f, w in zip((first, last), whole, strict=True))
        series = series.between(first, last)
    value = compute(statistic, series.values)
    if value is None or not holds(value, direction, threshold):
        return None
    return Evidence(
        metric=metric,
        first_step=int(series.steps[0]),
        last_step=int(series.steps[-1]),
        statistic=statistic,
        value=value,
        threshold=float(threshold),
        direction=direction,
    )


def holds(value: float, direction: Direction, threshold: float) -> bool:
    """Whether a value lies on its side of the threshold; NaN lies on none."""
    return value > threshold if direction == "above" else value < threshold


def finding(
    cause: str,
    severity: Severity,
    confidence: float,
    evidence: list[Evidence | None],
    sentence: str,
    changes: dict[str, str] | None = None,
    counter: list[Evidence | None] | None = None,
) -> Finding:
    """A finding of the citations that hold; what counts against it takes from the confidence."""
    against = tuple(e for e in counter or [] if e)
    return Finding(
        cause=cause,
        severity=severity,
        evidence=tuple(e for e in evidence if e),
        counter_evidence=against,
        confidence=max(0.05, confidence - 0.15 * len(against)),
        next_test=NextTest(changes=changes or {}, sentence=sentence),
    )
