# SPDX-License-Identifier: Apache-2.0
"""What passes over the desk, as records of the ledger.

    project     the config to be improved, and how much may be spent on it         signed
    diagnosis   findings about a run
    proposal    one change, what it is expected to do, what it costs to find out
    draft       the question that some proposals make: arms, seeds, rules, cost; an id by its hash.
                Without arms it is a pilot of the project's config, with widths a trial (trial.py)
    check       what a program found wrong with a draft; nothing, or it goes no further
    consent     a person's, to that hash; or within an envelope that a person signed  signed
    refusal     a person's, with the reason
    start       the draft's runs may begin: its FLOPs are spent from here on
    outcome     what the runs showed: what is kept, and what a fresh confirmation claims
    adoption    a kept change becomes part of the project's config; or within an
                envelope that says so                                               signed
    envelope    drafts within it need no further approval                           signed
    halt, resume  the kill switch; anybody may halt, a person resumes               (resume) signed
    call        one call of a model: tokens, cost, how it ended
    patch       a diff of the code, by its hash; a proposal with {"patch": id} asks what it does
    trial       a person lets a draft's code be tried in the sandbox: its tests, a few updates  signed
    tested      what came of that; a problem, and the draft goes no further

Standard library only.
"""

import dataclasses
import math

from jaxlm.core.canonical import content_id
from jaxlm.core.errors import ConfigError
from jaxlm.research.patch.diff import PATHS

Changes = dict[str, str]  # field -> gin expression; or "patch" -> its id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seat:
    """Which model `--with claude` asks, and what it costs; prices as its provider states them."""

    model: str = "claude-opus-5-5"
    usd_per_mtok_in: float = 5.0
    usd_per_mtok_out: float = 25.0
    max_tokens: int = 4096  # of one reply
    max_turns: int = 24  # calls of one task

    def __post_init__(self) -> None:
        for name in ("usd_per_mtok_in", "usd_per_mtok_out"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be a price >= 0, got {value}")
        for name in ("max_tokens", "max_turns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Project:
    """What is being improved, and the limits of the whole campaign."""

    config: tuple[str, ...]  # gin files
    overrides: tuple[str, ...]
    promote: tuple[str, ...]  # overrides of the larger scale at which a keep must hold too
    max_flops: float
    max_usd: float  # paid to a model's provider
    max_hours: float  # from the first start on
    paths: tuple[str, ...] = PATHS  # what a patch may touch
    seat: Seat = Seat()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """One change.  Effects are in the metric's unit; below zero is better."""

    title: str
    changes: Changes
    why: str
    by: str  # a seat: "rules", a model's id, or a person's name
    metric: str
    predicted: tuple[float, float, float]  # effect, and an interval that holds it 9 times in 10
    flops: float  # of one run
    base: str  # config id of the project's config when it was made
    score: float  # expected gain per 1e15 FLOPs of finding out (rank.py)

    @property
    def id(self) -> str:
        return content_id(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftArm:
    name: str
    changes: Changes
    config_id: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A question as it will be run: what is approved is this, by its hash."""

    hypothesis: str
    proposals: tuple[str, ...]  # ids
    arms: tuple[DraftArm, ...]  # without the baseline
    base: str  # the baseline's config id
    seeds: int
    confirm: int  # fresh seeds of what is kept
    promote: tuple[str, ...]  # overrides of the larger scale at which it must hold too
    metric: str
    smallest_effect: float
    predicted: tuple[float, float, float]  # of the best arm
    flops: float  # of everything it may run
    data_id: str
    code: str
    evaluator: str
    by: str
    widths: tuple[float, ...] = ()  # of a trial: multiples of the config's own, the last forecast

    @property
    def id(self) -> str:
        return content_id(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Envelope:
    """Drafts that vary only these fields are approved, until the money or the time is spent."""

    fields: tuple[str, ...]
    flops: float
    until: float  # unix seconds
    by: str
    adopts: bool = False  # what such a draft keeps and confirms may be adopted too

    @property
    def id(self) -> str:
        return content_id(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a model.  Written twice: before it with the most it may cost, after it as it was."""

    call: str  # 16 random hex digits
    model: str
    status: str  # reserved | completed | failed
    usd: float
    input_tokens: int = 0
    output_tokens: int = 0
    stop_reason: str | None = None
    error: str | None = None
    tools: tuple[str, ...] = ()
