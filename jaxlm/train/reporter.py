# SPDX-License-Identifier: Apache-2.0
"""Device metrics into telemetry rows, with what only the host knows: time, speed, totals.

Legend: L layers with experts  E experts
"""

import time
from collections.abc import Callable
from typing import Any

from jaxlm.config import Resolved
from jaxlm.core.types import Metrics
from jaxlm.telemetry.display import Display
from jaxlm.telemetry.writer import Writer
from jaxlm.train.probes import PROBES, Probe

EXPERT_TOKENS = "router/expert_tokens"
APART = (EXPERT_TOKENS, PROBES)  # arrays, which become several numbers
EXPERTS_EVERY = 10  # updates: a row of them has a number for every expert of every layer
Clock = Callable[[], float]


class Reporter:
    """Writes rows and shows them.  Processes other than the first have no writers."""

    def __init__(
        self,
        writers: list[Writer],
        display: Display,
        resolved: Resolved,
        peak_flops: float | None,
        clock: Clock = time.perf_counter,
        probe: Probe | None = None,
    ) -> None:
        """peak_flops: of all devices together; None leaves MFU out.  probe: names `probes`."""
        self._probe = probe
        self._writers, self._display, self._clock = writers, display, clock
        self._tokens_per_step = resolved.tokens_per_step
        self._flops_per_step = resolved.train_flops_per_token * resolved.tokens_per_step
        self._peak_flops, self._tokens_seen = peak_flops, 0
        self._last_time: float | None = None
        self.step_times: list[float] = []

    def train(self, step: int, metrics: Metrics, epoch: float, data_wait_s: float) -> None:
        """The row of the update that produced `step`; metrics are host values."""
        self._tokens_seen += round(float(metrics["train/tokens"]))
        row = {name: float(value) for name, value in metrics.items() if name not in APART}
        if self._probe is not None and self._probe.is_due(step - 1):
            values = map(float, metrics[PROBES])
            row |= dict(zip(self._probe.names, values, strict=True))
        row |= {"data/tokens_seen": self._tokens_seen, "data/epoch": epoch}
        now = self._clock()
        if self._last_time is not None:
            seconds = now - self._last_time
            self.step_times.append(seconds)
            row |= {
                "perf/step_time_s": seconds,
                "perf/tokens_per_s": self._tokens_per_step / seconds,
                "perf/data_wait_s": data_wait_s,
            }
            if self._peak_flops is not None:
                row["perf/mfu_frac"] = self._flops_per_step / seconds / self._peak_flops
        self._last_time = now
        if EXPERT_TOKENS in metrics and step % EXPERTS_EVERY == 0:
            tokens_LE = [[round(n) for n in layer.tolist()] for layer in metrics[EXPERT_TOKENS]]
            self._write({"kind": "experts", "step": step, EXPERT_TOKENS: tokens_LE})
        self._write({"kind": "train", "step": step, **row})
        self._display.train({"step": step, **row})

    def resume(self, tokens_seen: int) -> None:
        """Goes on counting where the run's earlier part ended."""
        self._tokens_seen = tokens_seen

    def paused(self) -> None:
        """The next interval holds an evaluation or a save: it is no step time."""
        self._last_time = None

    def eval(self, step: int, metrics: dict[str, float]) -> None:
        self._write({"kind": "eval", "step": step, **metrics})
        self._display.eval({"step": step, **metrics})

    def event(self, step: int, event: str, detail: str) -> None:
        self._write({"kind": "event", "step": step, "event": event, "detail": detail})
        self._display.note(
            f"{event} at update {step}: {detail}" if detail else f"{event} at update {step}"
        )

    def _write(self, row: dict[str, Any]) -> None:
        row["time"] = time.time()  # unix seconds
        for writer in self._writers:
            writer.write(row)
