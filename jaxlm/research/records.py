# SPDX-License-Identifier: Apache-2.0
"""What the ledger holds, in the order it comes about: protocol, approval, runs, review.

Frozen, and plain JSON once written.  A protocol's id is the hash of all of it, fixed before its
first run; whatever departs from it later shows (verify.py).  Standard library only.
"""

import dataclasses
from typing import Any, Literal

from jaxlm.core.canonical import content_id, to_jsonable

BASELINE = "baseline"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One setting to be tried."""

    name: str
    changes: dict[str, str]  # field -> gin expression; {} for the baseline
    config_id: str  # of the arm's config with the first seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is asked, what will be run, and what will follow from which outcome."""

    hypothesis: str
    arms: tuple[Arm, ...]  # the baseline first
    seeds: tuple[int, ...]  # of initial parameters and data order, the same for every arm
    metric: str  # a registered one
    direction: Literal["lower", "higher"]
    # the baseline at shorter lengths, each with its whole schedule: what loss is worth in compute
    curve: tuple[Arm, ...] = ()
    curve_seeds: tuple[int, ...] = ()
    smallest_effect: float  # in units of the metric: what is less is not worth keeping
    alpha: float  # of two-sided intervals
    flops_per_run: dict[str, float]  # by arm
    budget_flops: float | None
    data_id: str
    code: str  # fingerprint.training_code()
    evaluator: str  # fingerprint.evaluator()
    stopping: str = "all seeds, each to its last update"
    decision: str = "paired differences to the baseline; keep, discard or inconclusive"
    predicted: tuple[float, float, float] | None = None  # effect, and an interval that may hold it

    @property
    def id(self) -> str:
        return content_id(self)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(arm, seed) in the order of the ledger: all arms of a seed before the next seed."""
        runs = [(arm.name, seed) for seed in self.seeds for arm in self.arms]
        return runs + [(arm.name, seed) for seed in self.curve_seeds for arm in self.curve]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One arm with one seed.  Without `status` "completed" and an evaluation there is no metric."""

    protocol: str
    arm: str
    seed: int
    run_id: str
    directory: str  # below the project's folder
    status: str  # completed | diverged | crashed
    metric: float | None
    evaluation: dict[str, Any] | None  # by the trusted evaluator
    is_reused: bool  # trained for an earlier protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Review:
    """The verdicts that follow from a protocol's runs."""

    protocol: str
    is_exploratory: bool  # something departed from the protocol
    verdicts: tuple[dict[str, Any], ...]  # one per arm but the baseline


def body(record: Any) -> dict[str, Any]:
    """As written to the ledger; a protocol with its id."""
    plain: dict[str, Any] = to_jsonable(record)
    return {"id": record.id, **plain} if isinstance(record, Protocol) else plain


def protocol_from(plain: dict[str, Any]) -> Protocol:
    """Back from a ledger's record; the id is computed anew."""
    fields = {k: v for k, v in plain.items() if k != "id"}
    for name in ("arms", "curve"):
        fields[name] = tuple(Arm(**arm) for arm in plain[name])
    for name in ("seeds", "curve_seeds"):
        fields[name] = tuple(plain[name])
    if plain.get("predicted") is not None:
        fields["predicted"] = tuple(plain["predicted"])
    return Protocol(**fields)
