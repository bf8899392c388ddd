# SPDX-License-Identifier: Apache-2.0
"""Detectors of what the model is fed: batches, targets, masks, validation and its accounting."""

import math
from collections.abc import Iterator

from jaxlm.research.diagnose.cite import cite, finding
from jaxlm.research.diagnose.findings import Finding
from jaxlm.research.diagnose.statistics import compute
from jaxlm.research.diagnose.telemetry import Telemetry


def target_shift(t: Telemetry) -> Iterator[Finding]:
    """Targets that are not the token that follows."""
    wrong = cite(t, "data/shifted_frac", "mean", "above", 0.01)
    if wrong:
        yield finding(
            "target_shift", "critical", 0.97, [wrong],
            "Look at one batch: `jaxlm data show` prints inputs beside targets.",
        )  # fmt: skip


def loss_mask(t: Telemetry) -> Iterator[Finding]:
    """Positions that count and are padding, or that do not count and are text."""
    wrong = cite(t, "data/mask_error_frac", "mean", "above", 0.01)
    if wrong:
        yield finding(
            "loss_mask", "critical", 0.97, [wrong],
            "Look at one batch: weights should be 1 exactly where segment_ids are above 0.",
        )  # fmt: skip


def duplicated(t: Telemetry) -> Iterator[Finding]:
    """Text that was trained on before, though the first epoch is not over."""
    epoch = t.get("data/epoch")
    within = epoch.steps[epoch.values < 1]
    if len(within) < 10:
        return
    last = int(within[-1])
    again = cite(t, "data/seen_frac", "mean", "above", 0.08, last=last)
    if again:
        yield finding(
            "duplicated_data", "critical", 0.9,
            [again, cite(t, "data/epoch", "max", "below", 1.0, last=last)],
            "Count the distinct documents of the source, and train on them once.",
            counter=[cite(t, "eval/loss_nats", "rise", "below", -0.05)],
        )  # fmt: skip


def unshuffled(t: Telemetry) -> Iterator[Finding]:
    """Neighbouring batches are alike in their token frequencies."""
    if t.config.data.weight_schedule or t.last_step < 40:
        return
    tokens = cite(t, "data/unigram_nats", "autocorrelation", "above", 0.12)
    lengths = cite(t, "data/bytes_per_token", "autocorrelation", "above", 0.12)
    if tokens or lengths:
        yield finding(
            "unshuffled_data", "warning", 0.75, [tokens, lengths],
            "Train for the same updates on rows in another order.",
            {"DataConfig.seed": str(t.config.data.seed + 1)},
            [cite(t, "train/loss_nats", "autocorrelation", "below", 0.2, first=t.last_step // 2)],
        )  # fmt: skip


def leak(t: Telemetry) -> Iterator[Finding]:
    """Validation text among the training text."""
    there = cite(t, "data/valid_frac", "mean", "above", 0.01)
    if there:
        gap = cite(t, "eval/loss_nats", "last", "below", _late_loss(t))
        yield finding(
            "validation_leak", "critical", 0.95, [there, gap],
            "Evaluate on text that was written after the training text was collected.",
        )  # fmt: skip


def overfitting(t: Telemetry) -> Iterator[Finding]:
    """Validation gets worse while training gets better."""
    evals = t.get("eval/loss_nats").values
    finite = evals[[math.isfinite(v) for v in evals]] if len(evals) else evals
    if len(finite) < 3:
        return
    worse = cite(t, "eval/loss_nats", "last", "above", float(finite.min()) + 0.05)
    better = cite(t, "train/loss_nats", "rise", "below", 0.0)
    gap = cite(t, "eval/loss_nats", "last", "above", _late_loss(t) + 0.3)
    if worse and better and gap:
        yield finding(
            "overfitting", "warning", 0.85,
            [worse, gap, better, cite(t, "data/epoch", "last", "above", 1.0)],
            "Stop at the best validation, or train on more text.",
            {"TrainConfig.num_steps": str(_best_step(t))},
        )  # fmt: skip


def bpb_accounting(t: Telemetry) -> Iterator[Finding]:
    """Bytes per target of the validation against those of training, and bpb against its own parts."""
    usual = compute("median", t.get("data/bytes_per_token").values)
    rates = "eval/bytes / eval/tokens"
    off = []
    if usual:
        off = [
            cite(t, rates, "last", "above", 1.12 * usual),
            cite(t, rates, "last", "below", usual / 1.12),
        ]
    rate = compute("last", t.get(rates).values)
    if rate:
        expected = 1 / (rate * math.log(2))
        parts = "eval/bpb / eval/loss_nats"
        off += [cite(t, parts, "last", "above", 1.01 * expected)]
        off += [cite(t, parts, "last", "below", 0.99 * expected)]
    if any(off):
        yield finding(
            "bpb_accounting", "critical", 0.9, off,
            "Count the bytes of the validation text by hand and divide.",
        )  # fmt: skip


def _late_loss(t: Telemetry) -> float:
    late = compute("late", t.get("train/loss_nats").values)
    return math.inf if late is None else late


def _best_step(t: Telemetry) -> int:
    evals = t.get("eval/loss_nats")
    return int(min(zip(evals.values, evals.steps, strict=True))[1])


DETECTORS = (target_shift, loss_mask, duplicated, unshuffled, leak, overfitting, bpb_accounting)
