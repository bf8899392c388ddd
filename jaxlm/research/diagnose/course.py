# SPDX-License-Identifier: Apache-2.0
"""Where the loss jumps, and where it left its course: what grew before is a cause, after a consequence."""

from collections.abc import Iterator

import numpy as np

from jaxlm.research.diagnose.cite import cite
from jaxlm.research.diagnose.findings import Evidence
from jaxlm.research.diagnose.statistics import SPIKE_WINDOW, SPIKE_Z, onsets
from jaxlm.research.diagnose.telemetry import Telemetry

LOSS = "train/loss_nats"
MANY = 3  # jumps that make them recurring
LASTING = 8  # updates over which a harmless spike has long passed


def jumps(t: Telemetry) -> list[int]:
    """Steps at which the loss rises above its own recent past."""
    loss = t.get(LOSS)
    return [int(step) for step in loss.steps[onsets(loss.values)]] if len(loss.steps) else []


def spike_at(t: Telemetry, metric: str, step: int) -> Evidence | None:
    """That a metric's value at a step is a spike above the rows before it."""
    return cite(t, metric, "largest_spike", "above", SPIKE_Z, step - SPIKE_WINDOW, step)


def lasting(t: Telemetry, step: int) -> Evidence | None:
    """That the loss is still high when a harmless spike at this step would have passed."""
    before = t.get(LOSS).between(step - SPIKE_WINDOW, step - 1).values
    middle = float(np.median(before))
    level = middle + 3 * 1.4826 * float(np.median(np.abs(before - middle)))
    return cite(t, LOSS, "median", "above", level, step, step + LASTING)


def on_course_until(t: Telemetry) -> int:
    """The last update before the loss jumps and stays up, or jumps for the first of many times.

    The last of all where it does neither.
    """
    found = jumps(t)
    if len(found) >= MANY:
        return found[0] - 1
    left: Iterator[int] = (step for step in found if lasting(t, step))
    return next(left, t.last_step + 1) - 1
