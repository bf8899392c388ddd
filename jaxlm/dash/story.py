# SPDX-License-Identifier: Apache-2.0
"""The ledger as the page tells it: limits, what waits for a person, campaigns with their verdicts.

Plain values; free text in them is data, which the page shows as text and nothing else.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.core.errors import RunError, UserError
from jaxlm.dash.tail import Tail
from jaxlm.research.desk import gates
from jaxlm.research.desk.quoting import plain
from jaxlm.research.desk.signing import read_key
from jaxlm.research.ledger import Record, parse
from jaxlm.research.readable import line

if TYPE_CHECKING:
    from jaxlm.research.desk.desk import Desk

MOST_CAMPAIGNS = 30
MOST_LINES = 14
NO_BYTES_LEFT = 1 << 30  # a ledger is read in one look


class Story:
    """Follows one project's ledger."""

    def __init__(self, project: Path, desk: Callable[[], "Desk"]) -> None:
        self.project, self.desk = project, desk
        self.tail = Tail(project / "ledger.jsonl")
        self.records: list[Record] = []
        self._restarts = 0
        self.told: dict[str, Any] = {}

    def look(self) -> bool:
        """Takes in new records; whether the story changed."""
        lines = self.tail.lines(NO_BYTES_LEFT)
        if self.tail.restarts != self._restarts:
            self._restarts, self.records = self.tail.restarts, []
        if not lines and self.told:
            return False
        problems = []
        for text in lines:
            try:
                self.records.append(parse(text, str(self.tail.path)))
            except RunError as e:
                problems.append(str(e))
        self.told = self._tell(problems)
        return True

    def _tell(self, problems: list[str]) -> dict[str, Any]:
        try:
            key = read_key()
        except RunError as e:
            key, problems = None, [*problems, str(e)]
        standing, forbidden = gates.fold(self.records, key)
        if key is None and standing.project is None and self._has_project():
            forbidden = ["the person's key is not here, so no signature can be checked"]
        return {
            "project": _limits(standing),
            "waiting": list(self._waiting(standing)),
            "campaigns": campaigns(self.records)[:MOST_CAMPAIGNS],
            "pages": self._pages(),
            "lines": [_line(r) for r in self.records[: -MOST_LINES - 1 : -1]],
            "problems": [plain(p) for p in [*problems, *forbidden]],
        }

    def _has_project(self) -> bool:
        return any(r.kind == "project" for r in self.records)

    def _pages(self) -> list[str]:
        return sorted(path.name for path in self.project.glob("*.html") if path.is_file())

    def _waiting(self, standing: gates.Standing) -> Iterator[dict[str, Any]]:
        for name, state in standing.states.items():
            draft = standing.drafts[name]
            if state == "checked":
                yield {"act": "approve", "arm": None, **self._draft(draft, draft["arms"], standing)}
            elif state == "confirmed":
                for arm in draft["arms"]:
                    if arm["name"] in standing.kept[name]:
                        yield {
                            "act": "adopt",
                            "arm": arm["name"],
                            **self._draft(draft, [arm], standing),
                        }

    def _draft(
        self, draft: dict[str, Any], arms: Sequence[dict[str, Any]], standing: gates.Standing
    ) -> dict[str, Any]:
        present = self._present()
        limit = standing.project["max_flops"] if standing.project else 0.0
        names = (
            "id", "by", "hypothesis", "seeds", "confirm", "promote", "metric", "smallest_effect",
            "predicted", "flops", "base", "data_id", "code", "evaluator",
        )  # fmt: skip
        return {name: draft[name] for name in names} | {
            "flops_left": limit - standing.flops,
            "flops_limit": limit,
            "arms": [
                {
                    "name": arm["name"],
                    "changes": [
                        {"field": field, "old": present.get(field), "new": new}
                        for field, new in arm["changes"].items()
                    ],
                }
                for arm in arms
            ],
        }

    def _present(self) -> dict[str, str]:
        """Fields of the project's config now; {} where it cannot be read, and the page shows no old value."""
        try:
            return {view.field: view.value for view in self.desk().fields()}
        except UserError:
            return {}

    def labels(self) -> dict[str, str]:
        """What the project's runs are: directory below the project -> arm and seed."""
        runs = [r.body for r in self.records if r.kind == "run"]
        return {str(run["directory"]): f"{run['arm']} · seed {run['seed']}" for run in runs}


def _limits(standing: gates.Standing) -> dict[str, Any] | None:
    if standing.project is None:
        return None
    limits = standing.project
    return {
        "config": " ".join([*limits["config"], *limits["overrides"]]),
        "adopted": [plain(adoption["arm"]) for adoption in standing.adopted],
        "flops": standing.flops,
        "max_flops": limits["max_flops"],
        "usd": standing.usd,
        "max_usd": limits["max_usd"],
        "is_halted": standing.is_halted,
    }


def _line(record: Record) -> dict[str, Any]:
    try:
        text = line(record)
    except (KeyError, TypeError, ValueError, AttributeError):
        text = "lacks a field, or holds another type"
    return {"seq": record.seq, "time": record.time, "kind": record.kind, "text": plain(text, 200)}


@dataclasses.dataclass
class _Stage:
    """A protocol and what came of it."""

    body: dict[str, Any]
    time: float
    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    finding: dict[str, Any] | None = None
    review: dict[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        body, review = self.body, self.review
        seeds, curve_seeds = len(body["seeds"]), len(body["curve_seeds"])
        planned = len(body["arms"]) * seeds + len(body["curve"]) * curve_seeds
        return {
            "id": body["id"],
            "stage": body["stage"],
            "metric": body["metric"],
            "direction": body["direction"],
            "smallest_effect": body["smallest_effect"],
            "margin": body["margin"],
            "planned": None if body["search"] or body["first_look"] else planned,
            "done": len(self.runs),
            "runs": [run["directory"] for run in self.runs],
            "finding": self.finding and (self.finding["problem"] or "fit for comparisons"),
            "is_exploratory": bool(review and review["is_exploratory"]),
            "departures": review["departures"] if review else [],
            "claim": review["claim"] if review else None,
            "verdicts": [
                {k: v.get(k) for k in ("arm", "decision", "effect", "low", "high", "n", "reason")}
                for v in (review["verdicts"] if review else [])
            ],
            "is_over": bool(review or self.finding),
        }


def campaigns(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Each question with its stages, newest first; pilots that found nothing wrong are left out."""
    stages: dict[str, _Stage] = {}
    questions: dict[str, list[_Stage]] = {}  # by id of the first protocol
    for record in records:
        try:
            if record.kind == "protocol":
                stage = stages[record.body["id"]] = _Stage(record.body, record.time)
                root = record.body["follows"]
                owner = next(
                    (k for k, v in questions.items() if any(s.body["id"] == root for s in v)), None
                )
                questions.setdefault(owner or record.body["id"], []).append(stage)
            elif record.kind == "run":
                stages[record.body["protocol"]].runs.append(record.body)
            elif record.kind in ("finding", "review"):
                setattr(stages[record.body["protocol"]], record.kind, record.body)
        except (KeyError, TypeError):
            continue  # `jaxlm research verify` has the words for it
    told = []
    for name, chain in questions.items():
        first = chain[0]
        if first.body["stage"] == "pilot" and first.finding and not first.finding["problem"]:
            continue
        told.append(
            {
                "id": name,
                "hypothesis": plain(first.body["hypothesis"], 300)
                or "is the baseline fit for comparisons?",
                "time": first.time,
                "stages": [stage.told() for stage in chain],
            }
        )
    return told[::-1]
