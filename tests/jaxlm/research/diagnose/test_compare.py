# SPDX-License-Identifier: Apache-2.0
"""What only a second run can tell: the same speed, and spikes at the same text."""

import dataclasses

import pytest

from jaxlm.research.diagnose.run import examine
from jaxlm.research.diagnose.telemetry import from_rows
from jaxlm.research.diagnose.verify import verify_rows
from tests.jaxlm.research.diagnose.conftest import CONFIG, healthy_rows


def causes(rows, other):
    """Verified causes of a run beside another."""
    t = dataclasses.replace(from_rows(CONFIG, rows), against=from_rows(CONFIG, other))
    found = examine(t)
    assert verify_rows(found, CONFIG, rows, (CONFIG, other)) == []
    return [f.cause for f in found]


def test_a_run_beside_itself_is_healthy(rows):
    assert causes(rows, healthy_rows()) == []


@pytest.mark.parametrize(("factor", "expected"), [(1.5, ["throughput_fall"]), (1.05, [])])
def test_slower_from_the_beginning_shows_beside_a_faster_run(rows, factor, expected):
    for row in rows:
        if "perf/step_time_s" in row:
            row["perf/step_time_s"] *= factor
    assert examine(from_rows(CONFIG, rows)) == []
    assert causes(rows, healthy_rows()) == expected


@pytest.mark.parametrize(("shift", "expected"), [(0, ["loss_spike_data"]), (7, [])])
def test_one_spike_in_both_runs_is_the_batch_if_the_batch_is_the_same(rows, shift, expected):
    other = healthy_rows()
    for row in (*rows, *other):
        if row["kind"] == "train" and row["step"] == 90:
            row["train/loss_nats"] += 2.0
    for row in other:
        if "data/batch_id" in row:
            row["data/batch_id"] += shift
    assert causes(rows, other) == expected
