# SPDX-License-Identifier: Apache-2.0
"""How well a diagnosis names planted faults, and how often it cries wolf.

Detectors may be tuned on one half of the runs (suite.Case.is_tuning) and are scored on the other.
Beside them stands the rule that other agents stop runs by: a loss that is NaN or above 100.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.bench.faults.suite import Case, Trained, all_cases, read_trained, train_missing
from jaxlm.research.diagnose.findings import Finding
from jaxlm.research.diagnose.run import examine
from jaxlm.research.diagnose.telemetry import from_rows
from jaxlm.research.diagnose.verify import verify_rows

BARS = {"recall": 0.90, "precision": 0.95, "first cause": 0.85, "false alarms": 0.02}


@dataclasses.dataclass(frozen=True)
class Judged:
    """One run, its truth, and what was said of it."""

    case: Case
    cause: str | None
    roots: tuple[str, ...]  # causes that no other finding explains, first one first
    named: tuple[str, ...]  # all causes
    num_citations: int
    num_wrong: int  # citations that do not verify


@dataclasses.dataclass(frozen=True)
class Score:
    """Shares; NaN where there is nothing to divide by."""

    recall: float  # mean over the kinds of the share of runs whose cause was named
    precision: float  # share of the first-order findings that name the planted cause
    first_cause: float  # share of the faulty runs whose first finding is the planted cause
    false_alarms: float  # share of the healthy runs with any finding
    verified: float  # share of the citations that verify
    num_faulty: int
    num_healthy: int


def judge(trained: Trained) -> Judged:
    """Runs every detector and checks every citation."""
    found = examine(from_rows(trained.config, trained.rows))
    return judged(trained, found)


def judged(trained: Trained, found: Sequence[Finding]) -> Judged:
    wrong = verify_rows(found, trained.config, trained.rows)
    return Judged(
        trained.case,
        trained.cause,
        tuple(f.cause for f in found if f.explained_by is None),
        tuple(f.cause for f in found),
        sum(len(f.evidence) + len(f.counter_evidence) for f in found),
        len(wrong),
    )


def stop_rule(trained: Trained) -> Judged:
    """The loss is NaN or above 100: a divergence; else nothing."""
    losses = [r["train/loss_nats"] for r in trained.rows if r["kind"] == "train"]
    stops = any(not math.isfinite(x) or x > 100 for x in losses)
    causes = ("divergence",) if stops else ()
    return Judged(trained.case, trained.cause, causes, causes, 0, 0)


def score(runs: Sequence[Judged]) -> Score:
    """Of all the runs given."""
    faulty = [r for r in runs if r.cause is not None]
    healthy = [r for r in runs if r.cause is None]
    by_kind: dict[str, list[bool]] = {}
    for run in faulty:
        by_kind.setdefault(str(run.cause), []).append(run.cause in run.named)
    roots = [(run.cause, root) for run in runs for root in run.roots]
    cited = sum(r.num_citations for r in runs)
    return Score(
        recall=_share([_share(found) for found in by_kind.values()]),
        precision=_share([cause == root for cause, root in roots]),
        first_cause=_share([r.roots[:1] == (r.cause,) for r in faulty]),
        false_alarms=_share([bool(r.named) for r in healthy]),
        verified=_share([1.0] * (cited - sum(r.num_wrong for r in runs)) + [0.0] * sum(
            r.num_wrong for r in runs
        )),
        num_faulty=len(faulty),
        num_healthy=len(healthy),
    )  # fmt: skip


def _share(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values) if values else math.nan


def bench_diagnose(
    folder: Path, seeds: int, tell: Callable[[str, float, str], None], trains: bool = True
) -> tuple[list[str], dict[str, Any]]:
    """(lines of tables, figures); trains what the folder lacks unless told not to."""
    cases = [case for case in all_cases() if case.seed < seeds]
    if trains:
        train_missing(folder, cases, tell)
    trained = list(read_trained(folder, cases))
    runs, ruled = [judge(t) for t in trained], [stop_rule(t) for t in trained]
    halves = {"tuning": True, "held out": False}
    split = {name: [r for r in runs if r.case.is_tuning == half] for name, half in halves.items()}
    held_rule = [r for r in ruled if not r.case.is_tuning]
    scores = {name: score(part) for name, part in split.items()} | {
        "held out, stop at NaN or loss > 100": score(held_rule)
    }
    lines = [*_score_lines(scores), "", *_kind_lines(split["held out"], held_rule)]
    if len(trained) < len(cases):
        lines.append(f"{len(cases) - len(trained)} of {len(cases)} runs were not trained yet")
    figures = {name: dataclasses.asdict(s) for name, s in scores.items()}
    return lines, json.loads(json.dumps(figures))


def _score_lines(scores: dict[str, Score]) -> Iterable[str]:
    width = max(map(len, scores))
    yield (f"{'':{width}}  recall  precision  first cause  false alarms  citations verified  runs")
    bars = f">= {BARS['recall']:.2f}  >= {BARS['precision']:.2f}     >= {BARS['first cause']:.2f}"
    yield f"{'asked for':{width}}  {bars}       <= {BARS['false alarms']:.2f}                 1.000"
    for name, s in scores.items():
        yield (
            f"{name:{width}}  {s.recall:6.3f}  {s.precision:9.3f}  {s.first_cause:11.3f}  "
            f"{s.false_alarms:12.3f}  {s.verified:18.3f}  {s.num_faulty} faulty, "
            f"{s.num_healthy} healthy"
        )


def _kind_lines(runs: list[Judged], ruled: list[Judged]) -> Iterable[str]:
    yield "held out, by kind          named  first cause  also said                 stop rule"
    for kind in dict.fromkeys(run.case.kind for run in runs):
        mine = [r for r in runs if r.case.kind == kind]
        rule = [r for r in ruled if r.case.kind == kind]
        others = sorted({root for r in mine for root in r.roots if root != r.cause})
        stopped = sum(bool(r.named) for r in rule)
        if mine[0].cause is None:
            alarms = sum(bool(r.named) for r in mine)
            named = f"{alarms} false alarms of {len(mine)}"
            yield f"{kind + ' (healthy)':25}  {named:18}  {', '.join(others):25} {stopped}/{len(rule)}"
            continue
        count = sum(r.cause in r.named for r in mine)
        first = sum(r.roots[:1] == (r.cause,) for r in mine)
        yield (
            f"{kind:25}  {count:2}/{len(mine):<2}  {first:5}/{len(mine):<5}  "
            f"{', '.join(others):25} {stopped}/{len(rule)}"
        )
