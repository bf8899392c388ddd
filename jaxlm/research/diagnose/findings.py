# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis hands over: causes with evidence that anybody can compute again.

Standard library only.
"""

import dataclasses
from typing import Literal

from jaxlm.research.diagnose.causes import CAUSES, SEVERITIES, Severity

Direction = Literal["above", "below"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """`statistic` of `metric` over the rows first_step..last_step is `direction` `threshold`.

    metric:     a registered name such as grad/norm_l2@layer_1, one of the run compared against
                ("against:train/loss_nats"), or two of them joined by " / " or " - ", row by row
    statistic:  one of statistics.STATISTICS; verify.py computes it anew
    """

    metric: str
    first_step: int
    last_step: int
    statistic: str
    value: float
    threshold: float
    direction: Direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextTest:
    """The cheapest run, or look, that would tell whether the cause is the right one."""

    changes: dict[str, str]  # config field -> gin expression; {}: nothing in the config to change
    sentence: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One cause; `explained_by` names the finding that brings it about, if another one does."""

    cause: str  # a key of causes.CAUSES
    severity: Severity
    evidence: tuple[Evidence, ...]
    counter_evidence: tuple[Evidence, ...] = ()  # what would not be so if the cause were right
    confidence: float  # 0..1
    next_test: NextTest
    explained_by: str | None = None

    def __post_init__(self) -> None:
        if self.cause not in CAUSES:
            raise ValueError(f"unknown cause {self.cause!r}")
        if self.severity not in SEVERITIES:
            raise ValueError(f"unknown severity {self.severity!r}")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must be in 0..1, got {self.confidence}")
        if not self.evidence:
            raise ValueError(f"{self.cause} without evidence")

    @property
    def meaning(self) -> str:
        return CAUSES[self.cause].meaning
