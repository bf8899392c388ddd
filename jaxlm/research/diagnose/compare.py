# SPDX-License-Identifier: Apache-2.0
"""Detectors that need a second run: the same machine earlier, or the same batches with another seed."""

from collections.abc import Iterator

from jaxlm.research.diagnose.cite import cite, finding
from jaxlm.research.diagnose.course import LOSS, jumps, spike_at
from jaxlm.research.diagnose.findings import Finding
from jaxlm.research.diagnose.telemetry import AGAINST, Telemetry

SAME_BATCH = f"data/batch_id - {AGAINST}data/batch_id"


def slower_than_before(t: Telemetry) -> Iterator[Finding]:
    """Updates of the same model and batch take longer than in the other run."""
    other = t.against
    if other is None or other.config.model != t.config.model:
        return
    sizes = [(c.data.batch_size, c.data.seq_len) for c in (t.config, other.config)]
    slower = cite(t, f"perf/step_time_s / {AGAINST}perf/step_time_s", "median", "above", 1.15)
    if slower and sizes[0] == sizes[1]:
        yield finding(
            "throughput_fall", "warning", 0.8, [slower],
            "Run `jaxlm bench step` with this config on both machines or commits.",
        )  # fmt: skip


def spikes_at_the_same_batches(t: Telemetry) -> Iterator[Finding]:
    """Both runs' losses jump at updates whose batches hold the same text."""
    if t.against is None:
        return
    shared = [step for step in jumps(t) if step in set(jumps(t.against))]
    same = [
        step
        for step in shared
        if cite(t, SAME_BATCH, "max", "below", 0.5, step, step)
        and cite(t, SAME_BATCH, "min", "above", -0.5, step, step)
    ]
    if same:
        yield finding(
            "loss_spike_data", "warning", 0.9,
            [
                e
                for step in same[:3]
                for e in (
                    spike_at(t, LOSS, step),
                    spike_at(t, f"{AGAINST}{LOSS}", step),
                    cite(t, SAME_BATCH, "max", "below", 0.5, step, step),
                )
            ],
            "Print the batches of these updates; train past them without those documents.",
        )  # fmt: skip


DETECTORS = (slower_than_before, spikes_at_the_same_batches)
