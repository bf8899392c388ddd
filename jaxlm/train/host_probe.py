# SPDX-License-Identifier: Apache-2.0
"""What only the process itself can tell: its memory, and how many programs were compiled."""

import functools
import os
from pathlib import Path

import jax.monitoring

STATM = Path("/proc/self/statm")


def host_probe() -> dict[str, float]:
    """Metrics by registered name; memory only where the kernel tells it."""
    found = {"perf/compiles": float(len(_compiles()))}
    if STATM.exists():
        pages = int(STATM.read_text().split()[1])
        found["perf/host_memory_bytes"] = float(pages * os.sysconf("SC_PAGE_SIZE"))
    return found


@functools.cache
def _compiles() -> list[str]:
    """Grows by one with each program that is compiled after the first call."""
    events: list[str] = []

    def on_event(event: str, duration_secs: float, **_: object) -> None:
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(on_event)
    return events
