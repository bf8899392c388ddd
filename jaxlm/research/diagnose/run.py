# SPDX-License-Identifier: Apache-2.0
"""diagnose(run_dir): from telemetry and config to findings, ranked.  Pure but for the reading."""

from pathlib import Path

from jaxlm.research.diagnose import compare, curves, data, gradients, schedule, systems
from jaxlm.research.diagnose.findings import Finding
from jaxlm.research.diagnose.rank import ranked
from jaxlm.research.diagnose.telemetry import Telemetry, read_telemetry

FAMILIES = (compare, curves, data, gradients, schedule, systems)
DETECTORS = tuple(detector for family in FAMILIES for detector in family.DETECTORS)


def diagnose(run_dir: Path, against: Path | None = None) -> list[Finding]:
    """What is wrong with a run, first cause first; [] for a healthy one.

    against: a run to compare with, such as an earlier one of the same config.
    Raises RunError for a directory that is no run, has no updates yet, or is damaged.
    """
    return examine(read_telemetry(run_dir, against))


def examine(telemetry: Telemetry) -> list[Finding]:
    """As `diagnose`, of telemetry in memory."""
    return ranked([f for detector in DETECTORS for f in detector(telemetry)])
