# SPDX-License-Identifier: Apache-2.0
"""Detectors of the loss curve's shape: divergence and spikes."""

from collections.abc import Iterator

import numpy as np

from jaxlm.research.diagnose.cite import cite, finding
from jaxlm.research.diagnose.course import LOSS, MANY, jumps, lasting, spike_at
from jaxlm.research.diagnose.findings import Finding
from jaxlm.research.diagnose.telemetry import Telemetry

TEXT = "data/unigram_nats"


def divergence(t: Telemetry) -> Iterator[Finding]:
    """A loss or gradient that is not finite, or a loss that ends far above its best stretch."""
    broken = [cite(t, name, "not_finite", "above", 0) for name in (LOSS, "grad/norm_l2")]
    best = _best_stretch(t.get(LOSS).values)
    away = cite(t, LOSS, "late", "above", best + 0.5)
    if any(broken) or away:
        yield finding(
            "divergence", "critical", 0.95 if any(broken) else 0.8, [*broken, away],
            "Go back to a checkpoint before the jump and train on with half the learning rate.",
            {"OptimConfig.peak_lr": f"{t.config.optim.peak_lr / 2:.3g}"},
        )  # fmt: skip


def spikes(t: Telemetry) -> Iterator[Finding]:
    """Jumps of the loss above its own recent past: with odd text, again and again, or one that lasts."""
    steps = jumps(t)
    odd = [s for s in steps if spike_at(t, TEXT, s)]
    halved = {"OptimConfig.peak_lr": f"{t.config.optim.peak_lr / 2:.3g}"}
    if len(odd) >= 2:
        yield finding(
            "loss_spike_data", "warning", 0.9,
            [e for s in odd[:3] for e in (spike_at(t, LOSS, s), spike_at(t, TEXT, s))],
            "Print the batches of these updates; train past them without those documents.",
        )  # fmt: skip
        return
    rest = [s for s in steps if s not in odd]
    often = cite(t, LOSS, "spikes", "above", MANY - 0.5)
    updates = cite(t, "update/ratio_rms", "spikes", "above", MANY - 0.5)
    once = cite(t, LOSS, "spikes", "above", 0.5)
    if rest and not odd and (often or (updates and once)):
        yield finding(
            "loss_spike_recurring", "warning", 0.75, [often or once, updates],
            "Train on from before the first spike with half the learning rate.", halved,
        )  # fmt: skip
        return
    for step in rest:
        lasts = lasting(t, step)
        if lasts:
            yield finding(
                "loss_spike_isolated", "warning", 0.7, [spike_at(t, LOSS, step), lasts],
                "Train on from before the spike, past the same batches, with half the learning rate.",
                halved,
            )  # fmt: skip
            return


def _best_stretch(values: np.ndarray) -> float:
    """The least median of ten neighbours; infinite for fewer finite values."""
    finite = values[np.isfinite(values)]
    if len(finite) < 10:
        return float("inf")
    windows = np.lib.stride_tricks.sliding_window_view(finite, 10)
    return float(np.median(windows, axis=1).min())


DETECTORS = (divergence, spikes)
