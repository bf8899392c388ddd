# SPDX-License-Identifier: Apache-2.0
"""Each detector on telemetry whose truth is known: it names its cause, alone, with evidence that holds."""

import dataclasses

import pytest

from jaxlm.research.diagnose.causes import CAUSES
from jaxlm.research.diagnose.run import examine
from jaxlm.research.diagnose.telemetry import from_rows
from jaxlm.research.diagnose.verify import verify_rows
from tests.jaxlm.research.diagnose.conftest import CONFIG
from tests.jaxlm.research.diagnose.faults import FAULTS, planted


def causes(config, rows):
    """The findings that no other one explains; every citation of all of them verifies."""
    found = examine(from_rows(config, rows))
    assert verify_rows(found, config, rows) == []
    return [f.cause for f in found if f.explained_by is None]


def test_a_healthy_run_has_no_findings(rows):
    assert examine(from_rows(CONFIG, rows)) == []


@pytest.mark.parametrize("cause", FAULTS)
def test_a_fault_is_named_and_nothing_else(rows, cause):
    assert causes(CONFIG, planted(rows, cause)) == [cause]


def test_every_cause_has_a_planted_fault_here():
    # what needs more than one change of a column has a test of its own below
    own = {"lr_too_high", "warmup_too_short", "optimizer_state_lost"}
    assert set(CAUSES) == set(FAULTS) | own


def test_too_high_a_learning_rate_explains_what_follows_from_it(rows):
    for row in rows:
        if row["kind"] == "train":
            row["train/loss_nats"] += 2.0 * (row["step"] > 100)
            row["update/ratio_rms"] = 0.3
    found = examine(from_rows(CONFIG, rows))
    assert [(f.cause, f.explained_by) for f in found][:1] == [("lr_too_high", None)]
    assert ("divergence", "lr_too_high") in [(f.cause, f.explained_by) for f in found]


def test_too_high_a_learning_rate_is_seen_before_the_parameters_blow_up(rows):
    """Then the same updates are small beside them, and attention saturates."""
    for row in rows:
        if row["kind"] == "train":
            row["update/ratio_rms"] = 0.25 if row["step"] <= 9 else 0.08
            if "attention/logit_max@layer_1" in row:
                row["attention/logit_max@layer_1"] *= 1.1 ** row["step"]
    found = examine(from_rows(CONFIG, rows))
    assert [(f.cause, f.explained_by) for f in found] == [
        ("lr_too_high", None), ("attention_logit_growth", "lr_too_high"),
    ]  # fmt: skip


def test_too_short_a_warmup_shows_in_the_first_updates(rows):
    optim = dataclasses.replace(CONFIG.optim, warmup_steps=0)
    for row in rows:
        if row["kind"] == "train":
            row["optim/lr"] = 1e-2 * (160 - row["step"]) / 160
            row["train/loss_nats"] += 3.0 * (2 <= row["step"] <= 8)
            row["update/ratio_rms"] *= 100 if row["step"] <= 8 else 1
    assert causes(dataclasses.replace(CONFIG, optim=optim), rows) == ["warmup_too_short"]


def test_a_lost_optimizer_state_shows_after_the_resume(rows):
    rows.append({"kind": "event", "step": 70, "event": "resumed", "detail": "from somewhere"})
    assert examine(from_rows(CONFIG, rows)) == []  # a resume alone is no fault
    for row in rows:
        if row["kind"] == "train" and 71 <= row["step"] <= 73:
            row["update/ratio_rms"] *= 5
            row["train/loss_nats"] += 0.3
    assert causes(CONFIG, rows) == ["optimizer_state_lost"]


def test_one_odd_batch_is_no_fault(rows):
    for row in rows:
        if row["step"] == 90 and row["kind"] == "train":
            row["train/loss_nats"] += 2.0
            row["data/unigram_nats"] += 1.5
    assert causes(CONFIG, rows) == []


def test_a_loss_that_stops_being_finite_is_a_divergence(rows):
    cut = [row for row in rows if row["step"] <= 80]
    cut[-2 if cut[-1]["kind"] == "eval" else -1]["train/loss_nats"] = float("nan")
    assert causes(CONFIG, cut) == ["divergence"]


@pytest.mark.parametrize("length", [1, 2, 11, 13])
def test_a_run_that_has_just_begun_has_no_findings(rows, length):
    assert examine(from_rows(CONFIG, [r for r in rows if r["step"] <= length])) == []
