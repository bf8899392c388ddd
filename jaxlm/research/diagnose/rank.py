# SPDX-License-Identifier: Apache-2.0
"""Order among findings: a cause stands before what it brings about, then the surer one."""

import dataclasses

from jaxlm.research.diagnose.causes import CAUSES, SEVERITIES
from jaxlm.research.diagnose.findings import Finding


def ranked(findings: list[Finding]) -> list[Finding]:
    """Each finding once per cause, first causes first; consequences name what explains them."""
    best: dict[str, Finding] = {}
    for found in sorted(findings, key=_weight):
        best.setdefault(found.cause, found)
    order = list(CAUSES)  # earlier entries explain later ones, never both each other's roots
    said: list[Finding] = []
    for found in sorted(best.values(), key=lambda f: order.index(f.cause)):
        roots = [f for f in said if f.explained_by is None]
        by = next((r.cause for r in roots if found.cause in CAUSES[r.cause].explains), None)
        said.append(dataclasses.replace(found, explained_by=by))
    return sorted(said, key=lambda f: (f.explained_by is not None, *_weight(f)))


def _weight(found: Finding) -> tuple[int, float]:
    return (-SEVERITIES.index(found.severity), -found.confidence)
