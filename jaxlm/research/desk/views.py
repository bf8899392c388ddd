# SPDX-License-Identifier: Apache-2.0
"""What the desk shows: small typed answers, the same for a person, an MCP client and a model.

Free text in them has passed through quoting.py.  Standard library only.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DraftView:
    id: str
    state: str
    hypothesis: str
    arms: list[str]
    seeds: int
    flops: float
    problems: list[str]
    kept: list[str]


@dataclasses.dataclass(frozen=True)
class StatusView:
    """Limits are of the whole project; `waiting` are drafts that a person has to approve or refuse."""

    config: list[str]
    overrides: list[str]
    adopted: list[str]
    flops_left: float
    usd_left: float
    hours_left: float
    is_halted: bool
    waiting: list[str]
    drafts: list[DraftView]


@dataclasses.dataclass(frozen=True)
class RunView:
    name: str
    status: str  # completed | diverged | crashed | running
    updates: int
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric at up to `points` updates, evenly chosen."""

    run: str
    metric: str
    unit: str
    steps: list[int]
    values: list[float | None]


@dataclasses.dataclass(frozen=True)
class FieldView:
    field: str  # as in `--set`: OptimConfig.peak_lr
    type: str
    value: str  # in the project's config


@dataclasses.dataclass(frozen=True)
class IdeaView:
    """An idea of the library that applies here, with what one believes of it."""

    title: str
    changes: dict[str, str]
    effect: float
    low: float
    high: float
    score: float  # expected gain per 1e15 FLOPs of finding out
    tried_as: str | None  # an earlier try of the same, or None


@dataclasses.dataclass(frozen=True)
class ProposalView:
    id: str
    title: str
    changes: dict[str, str]
    effect: float
    low: float
    high: float
    flops: float  # of one run
    score: float  # expected gain per 1e15 FLOPs of finding out
    repeats: str | None  # then it was not put on the list


@dataclasses.dataclass(frozen=True)
class RecordView:
    seq: int
    kind: str
    line: str


@dataclasses.dataclass(frozen=True)
class FindingView:
    cause: str
    confidence: float
    evidence: list[str]
    counter_evidence: list[str]
    next_test: dict[str, str]


@dataclasses.dataclass(frozen=True)
class VerdictView:
    """An arm against the baseline, paired by seed; what is not known is None."""

    arm: str
    decision: str  # keep | discard | inconclusive
    effect: float | None  # in the metric's unit
    low: float | None
    high: float | None
    seeds: int
    compute_saved: float | None  # share of the baseline's FLOPs that the effect is worth
    false_discovery_rate: float | None  # over the whole project
    seeds_needed: int | None  # to settle an effect of this size
    reason: str


@dataclasses.dataclass(frozen=True)
class StageView:
    """`departures` from the protocol make its verdicts exploratory."""

    record: int  # number of the review in the ledger
    stage: str  # screen | gate | confirmation | ladder | trial
    metric: str
    verdicts: list[VerdictView]
    departures: list[str]


@dataclasses.dataclass(frozen=True)
class ReviewView:
    """What came of a draft; no stages where nothing was reviewed yet."""

    draft: str
    state: str
    kept: list[str]
    problems: list[str]
    stages: list[StageView]


@dataclasses.dataclass(frozen=True)
class SourceView:
    """A file of the code; or, without a path, the files that a patch may change."""

    path: str
    text: str
    files: list[str]


@dataclasses.dataclass(frozen=True)
class Said:
    """The answer of a step that only leaves a record."""

    said: str
