# SPDX-License-Identifier: Apache-2.0
"""Detectors of the learning rate and its schedule."""

from collections.abc import Iterator

from jaxlm.research.diagnose.cite import cite, finding
from jaxlm.research.diagnose.findings import Finding
from jaxlm.research.diagnose.statistics import SPIKE_Z
from jaxlm.research.diagnose.telemetry import EXPECTED_LR, Telemetry

LARGE_UPDATE = 0.1  # rms of an update over rms of the parameters
FIRST = 10  # updates
TINY_UPDATE = 1.2e-3  # the same, of the largest update of all
UNIGRAM = "data/unigram_nats"
RATIO = f"optim/lr / {EXPECTED_LR}"


def schedule_mismatch(t: Telemetry) -> Iterator[Finding]:
    """The learning rate that was used against the one that the config asks for."""
    off = [cite(t, RATIO, "max", "above", 1.02), cite(t, RATIO, "min", "below", 0.98)]
    if any(off):
        yield finding(
            "schedule_mismatch",
            "critical",
            0.97,
            off,
            "Look at what sets the learning rate besides the config; the same config should give "
            "the expected rate at every update.",
        )


def lr_too_low(t: Telemetry) -> Iterator[Finding]:
    """Updates far below what their parameters need, while the loss still falls at the end."""
    if t.last_step < t.config.optim.warmup_steps + 20:
        return
    tiny = cite(t, "update/ratio_rms", "max", "below", TINY_UPDATE)
    small = cite(t, "update/ratio_rms", "max", "below", 5 * TINY_UPDATE)
    # a model that knows less than token frequencies has not begun to learn
    unlearnt = cite(t, f"train/loss_nats - {UNIGRAM}", "late", "above", 0.0)
    falling = cite(t, "train/loss_nats", "rise", "below", 0.0)
    if falling and (tiny or (small and unlearnt)):
        yield finding(
            "lr_too_low",
            "warning",
            0.8,
            [tiny or small, unlearnt, falling],
            "Train the same config with four times the learning rate and compare the final loss.",
            {"OptimConfig.peak_lr": f"{4 * t.config.optim.peak_lr:.3g}"},
        )


def too_large_updates(t: Telemetry) -> Iterator[Finding]:
    """Updates of a tenth of their parameters: throughout, or only for want of a warmup."""
    config, steps = t.config, t.config.train.num_steps
    until = config.optim.warmup_steps + 5
    # parameters that blow up soon hide how large the first updates were
    large = cite(t, "update/ratio_rms", "median", "above", LARGE_UPDATE, last=until) or cite(
        t, "update/ratio_rms", "median", "above", 1.5 * LARGE_UPDATE, last=min(until, FIRST)
    )
    if not large:
        return
    early = max(10, steps // 10)
    has_warmup = config.optim.warmup_steps >= min(10, steps // 100 + 1)
    stays = cite(t, "update/ratio_rms", "median", "above", LARGE_UPDATE / 3, early, 3 * early)
    if has_warmup or stays:
        yield finding(
            "lr_too_high",
            "critical",
            0.9 if stays else 0.75,
            [large, stays],
            "Train the same config with a quarter of the learning rate.",
            {"OptimConfig.peak_lr": f"{config.optim.peak_lr / 4:.3g}"},
            counter=[cite(t, "train/loss_nats", "largest_spike", "below", SPIKE_Z)],
        )
        return
    first = t.get("train/loss_nats").values[0]
    yield finding(
        "warmup_too_short",
        "warning",
        0.8,
        [
            large,
            cite(t, "update/ratio_rms", "median", "below", LARGE_UPDATE / 3, early, 3 * early),
            cite(t, "train/loss_nats", "max", "above", 1.02 * float(first), last=early),
        ],
        "Train the same config with a longer warmup and compare the first updates.",
        {"OptimConfig.warmup_steps": str(max(1, min(2 * early, steps // 2)))},
    )


DETECTORS = (schedule_mismatch, too_large_updates, lr_too_low)
