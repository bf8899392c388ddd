# SPDX-License-Identifier: Apache-2.0
"""Faults written into healthy telemetry: a function of (row, its step) for each cause."""

import math


def scaled(names, factor, begin=0, every=1):
    """Multiplies metrics, from a step on, at every so many steps."""

    def change(row):
        if row["step"] >= begin and row["step"] % every == 0:
            for name in names:
                if name in row:
                    at = row["step"] - begin
                    row[name] *= factor(at) if callable(factor) else factor

    return change


def put(values, when=lambda step: True):
    """Sets metrics where they are, at the steps of `when`."""

    def change(row):
        if when(row["step"]):
            for name, value in values.items():
                if name in row:
                    row[name] = value(row["step"]) if callable(value) else value

    return change


def added(name, value, when):
    """Adds to a metric at the steps of `when`."""

    def change(row):
        if name in row and when(row["step"]):
            row[name] += value(row["step"]) if callable(value) else value

    return change


LOSS, TEXT, TIME = "train/loss_nats", "data/unigram_nats", "perf/step_time_s"
SPIKES = (50, 77, 103, 131)
FAULTS = {
    "divergence": [added(LOSS, 2.0, lambda s: s >= 100)],
    "loss_spike_isolated": [added(LOSS, lambda s: 2 * math.exp((80 - s) / 8), lambda s: s >= 80)],
    "loss_spike_recurring": [added(LOSS, 1.5, lambda s: s in SPIKES)],
    "loss_spike_data": [
        added(LOSS, 1.5, lambda s: s in SPIKES), added(TEXT, 1.5, lambda s: s in SPIKES),
    ],
    "lr_too_low": [scaled(["update/ratio_rms"], 0.01)],
    "schedule_mismatch": [scaled(["optim/lr"], 1.1, begin=40)],
    "gradient_explosion": [scaled(["grad/norm_l2@layer_1"], lambda n: 1.05**n, begin=30)],
    "gradient_vanishing": [scaled(["grad/norm_l2@layer_2"], lambda n: 0.95**n, begin=30)],
    "frozen_layer": [put({"update/ratio_rms@layer_0": 0.0}, lambda s: s > 60)],
    "update_ratio_off": [scaled(["update/ratio_rms@layer_1"], 9.0)],
    "attention_logit_growth": [scaled(["attention/logit_max@layer_1"], lambda n: 1.03**n)],
    "output_logit_drift": [scaled(["train/z_loss"], lambda n: 1.01**n, begin=30)],
    "bf16_stagnation": [put({"param/bf16_frac": 1.0})],
    "overfitting": [
        put({"eval/loss_nats": lambda s: 4.9 + abs(s - 60) / 40,
             "eval/bpb": lambda s: (4.9 + abs(s - 60) / 40) / (2 * math.log(2))}),
        put({"data/epoch": lambda s: s / 10}),
    ],
    "duplicated_data": [put({"data/seen_frac": 0.3}, lambda s: s > 5)],
    "unshuffled_data": [added(TEXT, lambda s: 0.2 * math.sin(s / 8), lambda s: True)],
    "validation_leak": [put({"data/valid_frac": 0.04}, lambda s: s % 2 == 0)],
    "target_shift": [put({"data/shifted_frac": 0.5})],
    "loss_mask": [put({"data/mask_error_frac": 0.2})],
    "bpb_accounting": [scaled(["eval/bytes"], 1.3), scaled(["eval/bpb"], 1 / 1.3)],
    "throughput_fall": [scaled([TIME], 1.4, begin=80)],
    "data_starvation": [put({"perf/data_wait_s": 0.04}), scaled([TIME], 1.4)],
    "straggler": [scaled([TIME], 3.0, every=13)],
    "recompilation": [put({"perf/compiles": lambda s: 3.0 + s // 10})],
    "memory_creep": [put({"perf/host_memory_bytes": lambda s: 7e8 + 1e6 * s})],
}  # fmt: skip


def planted(rows, cause):
    """The rows, changed in place."""
    for change in FAULTS[cause]:
        for row in rows:
            change(row)
    return rows
