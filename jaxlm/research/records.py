# SPDX-License-Identifier: Apache-2.0
"""What the ledger holds, in the order it comes about: protocol, approval, runs, finding or review.

Frozen, and plain JSON once written.  A protocol's id is the hash of all of it, fixed before its
first run; whatever departs from it later shows (verify.py).  Standard library only.
"""

import dataclasses
from typing import Any, Literal

from jaxlm.core.canonical import content_id, to_jsonable
from jaxlm.core.errors import ConfigError

BASELINE = "baseline"
JOIN = " + "  # between the names of ideas that a policy puts together
PATCH = "patch"  # among an arm's changes, the id of a diff of the code (patch/diff.py)
Stage = Literal["pilot", "screen", "gate", "confirmation", "search", "ladder", "trial"]


def check_name(name: str, what: str) -> None:
    """Raises ConfigError for a name that an arm cannot have; what: gave it."""
    is_baseline = name == BASELINE or name.startswith(f"{BASELINE},")  # the latter are shorter ones
    if not name or is_baseline or JOIN in name or not name.isprintable():
        raise ConfigError(
            f"{what}: an arm cannot be named {name!r}; allowed are printable characters without "
            f"{JOIN!r}, which joins arms, and not {BASELINE!r}: give another name"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One setting to be tried."""

    name: str
    changes: dict[str, str]  # field -> gin expression; {} for the baseline
    config_id: str  # of the arm's config with the first seed (arm_id)


def arm_id(config_id: str, changes: dict[str, str]) -> str:
    """What tells arms apart: the config's id, and with a patch its id too."""
    return content_id([config_id, changes[PATCH]]) if PATCH in changes else config_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A policy that asks for runs as it goes (policies/), instead of all arms with all seeds."""

    policy: str
    seed: int  # of its draws, and the first of its runs
    budget: float  # in full runs of the baseline
    knowledge: dict[str, Any]  # what it is told beforehand


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is asked, what will be run, and what will follow from which outcome."""

    stage: Stage = "screen"
    follows: str | None = None  # the protocol whose outcome named these arms
    hypothesis: str
    arms: tuple[Arm, ...]  # the baseline first
    seeds: tuple[int, ...]  # of initial parameters and data order, the same for every arm
    first_look: int | None = None  # seeds before the first; None: all seeds, and one look
    search: Search | None = None  # then arms are ideas, and `seeds` is empty
    metric: str  # a registered one
    direction: Literal["lower", "higher"]
    # the baseline at shorter lengths, each with its whole schedule: what loss is worth in compute
    curve: tuple[Arm, ...] = ()
    curve_seeds: tuple[int, ...] = ()
    smallest_effect: float  # in units of the metric: what is less is not worth keeping
    margin: float | None = None  # arms simplify: kept where no worse than this
    alpha: float  # of two-sided intervals
    flops_per_run: dict[str, float]  # by arm
    tokens_per_run: dict[str, float]
    budget: float | None
    budget_unit: str = "flops"  # flops | tokens | seconds | runs
    data_id: str
    code: str  # fingerprint.training_code()
    evaluator: str  # fingerprint.evaluator()
    rules: str  # fingerprint.rules(): of statistics and policies
    any_horizon: bool = False  # go on though the loss still moves fast
    promote: tuple[str, ...] = ()  # the larger scale at which a keep must hold to be adopted
    confirm: int = 0  # fresh seeds of what is kept in the end: the only source of a claimed gain
    predicted: tuple[float, float, float] | None = None  # effect, and an interval that may hold it

    @property
    def id(self) -> str:
        return content_id(self)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(arm, seed) in the order of the ledger: all arms of a seed before the next seed."""
        runs = [(arm.name, seed) for seed in self.curve_seeds for arm in self.curve]
        return runs + [(arm.name, seed) for seed in self.seeds for arm in self.arms]

    @property
    def is_sequential(self) -> bool:
        """Seeds are added until every arm is settled; intervals hold at every look."""
        return self.first_look is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One arm with one seed.  Without `status` "completed" and an evaluation there is no metric.

    A policy may stop a run on its way: then it is "stopped", and `reading` is what its own validation
    said there.  That may end a run; no verdict rests on it.
    """

    protocol: str
    arm: str
    seed: int
    run_id: str
    directory: str  # below the project's folder
    status: str  # completed | diverged | stopped
    metric: float | None
    evaluation: dict[str, Any] | None  # by the trusted evaluator
    is_reused: bool  # trained for an earlier protocol
    fraction: float = 1.0  # of its updates, that it was asked to make
    scale: int = 0  # 1: the larger one
    reading: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What a pilot says of the baseline: its noise, and whether its length is fit for comparing."""

    protocol: str
    sigma: float | None  # of one run, nats per token
    df: int
    slope: float | None  # nats per token that one more e-fold of training takes off
    fall: float | None  # the same as a share of the loss's whole fall
    problem: str | None  # None: fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is expected of a trial's runs, fixed before the first of them (stats/forecast.py)."""

    protocol: str  # of the trial
    rests_on: tuple[str, ...]  # protocols of the ladder
    expected: dict[str, dict[str, Any]]  # by quantity: median, low, high, reach, problem
    by_width: dict[str, list[float]]  # the measured ratio of tokens at each step of the ladder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """What came out of a trial, beside its forecast."""

    protocol: str
    pairs: tuple[dict[str, Any], ...]  # by seed: the target, and each arm's tokens to it
    ratio: float  # adopted tokens over the baseline's
    low: float
    high: float | None  # None: unknown, for an arm that did not arrive
    not_reached: int
    outcomes: dict[str, float]  # by quantity, as in the forecast
    covered: dict[str, bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Review:
    """The verdicts that follow from a protocol's runs."""

    protocol: str
    is_exploratory: bool  # something departed from the protocol
    departures: tuple[str, ...] = ()
    verdicts: tuple[dict[str, Any], ...]  # one per arm but the baseline
    claim: dict[str, Any] | None = None  # gain of all that is kept, from seeds that decided nothing


def body(record: Any) -> dict[str, Any]:
    """As written to the ledger; a protocol with its id."""
    plain: dict[str, Any] = to_jsonable(record)
    return {"id": record.id, **plain} if isinstance(record, Protocol) else plain


def protocol_from(plain: dict[str, Any]) -> Protocol:
    """Back from a ledger's record; the id is computed anew."""
    fields = {k: v for k, v in plain.items() if k != "id"}
    for name in ("arms", "curve"):
        fields[name] = tuple(Arm(**arm) for arm in plain[name])
    for name in ("seeds", "curve_seeds", "promote"):
        fields[name] = tuple(plain[name])
    if plain.get("search") is not None:
        fields["search"] = Search(**plain["search"])
    if plain.get("predicted") is not None:
        fields["predicted"] = tuple(plain["predicted"])
    return Protocol(**fields)
