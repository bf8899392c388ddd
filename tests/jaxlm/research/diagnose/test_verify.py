# SPDX-License-Identifier: Apache-2.0
"""The checker agrees with the detectors' statistics, and refuses every citation that is not so."""

import dataclasses
import math

import numpy as np
import pytest

from jaxlm.research.diagnose.run import examine
from jaxlm.research.diagnose.schedule import RATIO
from jaxlm.research.diagnose.statistics import OF_ALL, STATISTICS, compute
from jaxlm.research.diagnose.telemetry import from_rows
from jaxlm.research.diagnose.verify import _COMPUTE, verify_rows
from tests.jaxlm.research.diagnose.conftest import CONFIG
from tests.jaxlm.research.diagnose.faults import planted


@pytest.mark.parametrize("name", [*STATISTICS, *OF_ALL])
@pytest.mark.parametrize("length", [1, 2, 3, 14, 90])
def test_both_ways_of_computing_a_statistic_agree(name, length):
    values = np.abs(np.random.default_rng(length).standard_normal(length)) + 0.1
    values[length // 2] *= 30  # a spike
    assert _COMPUTE[name](values.tolist()) == pytest.approx(compute(name, values), rel=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_both_ways_of_computing_the_expected_learning_rate_agree(rows, schedule):
    optim = dataclasses.replace(CONFIG.optim, schedule=schedule, final_lr_frac=0.1)
    config = dataclasses.replace(CONFIG, optim=optim)
    for row in rows:
        row.pop("optim/lr", None) if row["step"] == 1 else None
    series = from_rows(config, rows).get(RATIO)
    evidence = examine(from_rows(config, rows))
    assert verify_rows(evidence, config, rows) == []
    assert len(series.steps) == 159


def one_citation(rows):
    found = examine(from_rows(CONFIG, planted(rows, "straggler")))
    assert verify_rows(found, CONFIG, rows) == []
    return found[0]


@pytest.mark.parametrize(
    "change",
    [
        {"value": 0.5},
        {"threshold": 0.9},
        {"direction": "below"},
        {"statistic": "median"},
        {"statistic": "imagined"},
        {"metric": "perf/data_wait_s"},
        {"metric": "perf/unheard_of"},
        {"first_step": 100},
        {"first_step": 1000, "last_step": 2000},
        {"value": math.nan},
    ],
)
def test_a_changed_citation_does_not_verify(rows, change):
    found = one_citation(rows)
    forged = dataclasses.replace(found.evidence[0], **change)
    problems = verify_rows([dataclasses.replace(found, evidence=(forged,))], CONFIG, rows)
    assert len(problems) == 1 and problems[0].startswith("straggler: ")


def test_changed_telemetry_does_not_verify(rows):
    found = one_citation(rows)
    for row in rows:
        if "perf/step_time_s" in row:
            row["perf/step_time_s"] = 0.1
    assert verify_rows([found], CONFIG, rows)
