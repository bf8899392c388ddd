# SPDX-License-Identifier: Apache-2.0
"""What diagnose says of a run, computed when somebody looks, and again once there is more to say."""

import threading
import time
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.telemetry.writer import FILE_NAME

PAUSE_S = 20.0  # between two diagnoses of a run that goes on: each reads all of its telemetry


class Findings:
    """Answers by run, each kept until its telemetry has grown and PAUSE_S have passed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, float, dict[str, Any]]] = {}
        self._one_at_a_time = threading.Lock()
        self.num_computed = 0

    def of(self, directory: Path, now: float | None = None) -> dict[str, Any]:
        """{"step": of the last update, "findings": [...]} or {"problem": why there is none}."""
        now = time.monotonic() if now is None else now
        with self._one_at_a_time:
            size = (directory / FILE_NAME).stat().st_size
            known = self._known.get(directory)
            if known is None or (known[0] != size and now - known[1] >= PAUSE_S):
                known = (size, now, self._computed(directory))
                self._known[directory] = known
            return known[2]

    def _computed(self, directory: Path) -> dict[str, Any]:
        from jaxlm.research.diagnose.readable import citation
        from jaxlm.research.diagnose.run import examine
        from jaxlm.research.diagnose.telemetry import read_telemetry

        self.num_computed += 1
        try:
            telemetry = read_telemetry(directory)
            found = examine(telemetry)
        except UserError as e:
            return {"problem": str(e)}
        told = [
            {
                "cause": f.cause,
                "meaning": f.meaning,
                "severity": f.severity,
                "confidence": f.confidence,
                "evidence": [citation(e) for e in f.evidence],
                "against": [citation(e) for e in f.counter_evidence],
                "next": f.next_test.sentence,
                "changes": f.next_test.changes,
                "explained_by": f.explained_by,
            }
            for f in found
        ]
        return {"step": telemetry.last_step, "findings": told}
