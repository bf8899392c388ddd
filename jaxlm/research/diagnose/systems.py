# SPDX-License-Identifier: Apache-2.0
"""Detectors of the machine: time, waiting, compilations, memory; and of a resume that lost state."""

from collections.abc import Iterator

from jaxlm.research.diagnose.cite import cite, finding
from jaxlm.research.diagnose.findings import Finding
from jaxlm.research.diagnose.statistics import compute
from jaxlm.research.diagnose.telemetry import Telemetry

STEP_TIME, WAIT = "perf/step_time_s", "perf/data_wait_s"
SETTLED = 10  # updates after which everything should have been compiled


def recompilation(t: Telemetry) -> Iterator[Finding]:
    """Programs are compiled long after the first updates."""
    again = cite(t, "perf/compiles", "rise", "above", 4.0, first=SETTLED)
    if again:
        yield finding(
            "recompilation", "warning", 0.9, [again],
            "Run ten updates with JAX_LOG_COMPILES=1: the log names the shapes that change.",
        )  # fmt: skip


def data_starvation(t: Telemetry) -> Iterator[Finding]:
    """A good part of the time of an update is waiting for its batch."""
    waits = cite(t, f"{WAIT} / {STEP_TIME}", "late", "above", 0.12)
    if waits:
        yield finding(
            "data_starvation", "warning", 0.9, [waits],
            "Run `jaxlm bench loader`, then the same config with more reader threads.",
            {"DataConfig.read_threads": str(2 * t.config.data.read_threads)},
        )  # fmt: skip


def throughput_fall(t: Telemetry) -> Iterator[Finding]:
    """Updates take longer than they did, and stay so."""
    slower = cite(t, STEP_TIME, "growth", "above", 1.15)
    if slower:
        yield finding(
            "throughput_fall", "warning", 0.85, [slower],
            "Resume the run on another machine, or profile a few updates now.",
            {"TrainConfig.profile_steps": f"({t.last_step + 1}, {t.last_step + 3})"},
            [cite(t, STEP_TIME, "rise", "below", 1e-4)],
        )  # fmt: skip


def straggler(t: Telemetry) -> Iterator[Finding]:
    """A share of the updates takes at least twice the usual time."""
    slow = cite(t, STEP_TIME, "share_above_double", "above", 0.03)
    if slow:
        yield finding(
            "straggler", "warning", 0.8, [slow],
            "Time the same few updates on each host alone.",
        )  # fmt: skip


def memory_creep(t: Telemetry) -> Iterator[Finding]:
    """Host memory grows through the second half of the run."""
    memory = t.get("perf/host_memory_bytes")
    if t.last_step < 40 or not len(memory.steps):
        return
    half = t.last_step // 2
    most = compute("max", memory.values) or 0.0
    grows = cite(t, "perf/host_memory_bytes", "rise", "above", max(10e6, 0.01 * most), first=half)
    before = cite(t, "perf/host_memory_bytes", "rise", "above", max(10e6, 0.01 * most), last=half)
    if grows and before:
        yield finding(
            "memory_creep", "warning", 0.85, [grows, before],
            "Run a few hundred updates with fewer readers and prefetched batches, and compare the growth.",
            {"DataConfig.prefetch": "1", "DataConfig.read_threads": "1"},
        )  # fmt: skip


def optimizer_state_lost(t: Telemetry) -> Iterator[Finding]:
    """The updates right after a resume are far larger than those before it."""
    for step in t.events.get("resumed", ()):
        before = compute("median", t.get("update/ratio_rms").between(step - 9, step).values)
        if before is None or step >= t.last_step:
            continue
        jump = cite(t, "update/ratio_rms", "max", "above", 2.0 * before, step + 1, step + 3)
        if jump:
            loss = compute("median", t.get("train/loss_nats").between(step - 9, step).values) or 0.0
            worse = cite(t, "train/loss_nats", "mean", "above", loss, step + 2, step + 6)
            yield finding(
                "optimizer_state_lost", "critical", 0.9, [jump, worse],
                "Resume again from the same checkpoint and compare its optimizer state with the file's.",
            )  # fmt: skip
            return


DETECTORS = (
    recompilation,
    data_starvation,
    throughput_fall,
    straggler,
    memory_creep,
    optimizer_state_lost,
)
