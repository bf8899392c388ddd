# SPDX-License-Identifier: Apache-2.0
"""What the desk's read verbs answer: numbers, and words from lists of ours; free text is quoted."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.errors import ConfigError, RunError, UserError
from jaxlm.core.typed import nearest
from jaxlm.research.desk.gates import Standing
from jaxlm.research.desk.quoting import is_name, plain, quoted
from jaxlm.research.desk.views import (
    Curve,
    DraftView,
    FindingView,
    RunView,
    SourceView,
    StatusView,
)
from jaxlm.research.fingerprint import KERNELS, PACKAGE
from jaxlm.telemetry.registry import spec_of
from jaxlm.telemetry.writer import latest_rows
from jaxlm.train.run_dir import read_json

STATUSES = ("completed", "diverged", "stopped", "crashed")
MOST_RUNS = 200


def status(standing: Standing, now: float) -> StatusView:
    assert standing.project is not None
    limits = standing.project
    hours = (now - standing.first_start) / 3600 if standing.first_start else 0.0
    return StatusView(
        config=list(limits["config"]),
        overrides=list(limits["overrides"]),
        adopted=[plain(adoption["arm"]) for adoption in standing.adopted],
        flops_left=limits["max_flops"] - standing.flops,
        usd_left=limits["max_usd"] - standing.usd,
        hours_left=limits["max_hours"] - hours,
        is_halted=standing.is_halted,
        waiting=[name for name, state in standing.states.items() if state == "checked"],
        drafts=[draft_view(standing, name, []) for name in standing.drafts],
    )


def draft_view(standing: Standing, name: str, problems: Sequence[str]) -> DraftView:
    draft = standing.drafts[name]
    why = [plain(standing.unanswered[name], 300)] if name in standing.unanswered else []
    return DraftView(
        id=name,
        state=standing.states[name],
        hypothesis=quoted(draft["hypothesis"]),
        arms=[plain(arm["name"]) for arm in draft["arms"]],
        seeds=draft["seeds"],
        flops=draft["flops"],
        problems=[*problems, *why],
        kept=[plain(arm) for arm in standing.kept.get(name, [])],
    )


def runs(folders: Iterable[Path]) -> list[RunView]:
    """Newest first."""
    paths = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    paths = [path for path in paths if is_name(path.name) and (path / "config.json").is_file()]
    paths.sort(key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)
    return [_run(path) for path in paths[:MOST_RUNS]]


def _run(path: Path) -> RunView:
    try:
        summary = read_json(path / "summary.json") or {}
        rows = latest_rows(path, "eval")
        steps = latest_rows(path, "train")
    except (UserError, KeyError, TypeError, AttributeError):
        return RunView(path.name, "crashed", 0, {})
    said = summary.get("status")
    last = rows[-1] if rows else {}
    metrics = {k: float(v) for k, v in last.items() if k.startswith("eval/") and _is_number(v)}
    return RunView(
        path.name,
        said if said in STATUSES else "running",
        int(steps[-1]["step"]) if steps else 0,
        {k: v for k, v in metrics.items() if _is_known(k)},
    )


def find(folders: Iterable[Path], name: str) -> Path:
    """A run directory by its name.  Raises RunError for any other text."""
    known = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    for path in known:
        if is_name(name) and path.name == name and not path.is_symlink():
            return path
    names = [path.name for path in known if is_name(path.name)]
    raise RunError(f"no run {plain(name, 80)!r} here; {nearest(name[:80], names)}")


def curve(path: Path, metric: str, points: int) -> Curve:
    """Raises ConfigError for a metric that is not registered, or that the run has not written."""
    kind = "eval" if metric.startswith("eval/") else "train"
    rows = [row for row in latest_rows(path, kind) if _is_number(row.get(metric, math.nan))]
    if not _is_known(metric) or not rows:
        seen = {k for k in (latest_rows(path, kind) or [{}])[-1] if _is_known(k)}
        raise ConfigError(
            f"{plain(metric, 60)!r} has no values in {path.name}; {nearest(metric[:60], seen)}"
        )
    chosen = sorted({round(i * (len(rows) - 1) / max(points - 1, 1)) for i in range(points)})
    values = [float(rows[i][metric]) for i in chosen]
    return Curve(
        path.name,
        metric,
        spec_of(metric).unit,
        [int(rows[i]["step"]) for i in chosen],
        [v if math.isfinite(v) else None for v in values],
    )


def diagnose(path: Path) -> list[FindingView]:
    from jaxlm.research.diagnose.run import diagnose as findings_of

    return [
        FindingView(
            cause=found.cause,
            confidence=found.confidence,
            evidence=[_evidence(e) for e in found.evidence],
            counter_evidence=[_evidence(e) for e in found.counter_evidence],
            next_test=dict(found.next_test.changes),
        )
        for found in findings_of(path)
    ]


def source(paths: Sequence[str], path: str) -> SourceView:
    """Raises ConfigError for a file that a patch may not change."""
    root = PACKAGE.parent
    covers = lambda name: any(name == p or (p.endswith("/") and name.startswith(p)) for p in paths)
    files = sorted(
        str(p.relative_to(root)) for top in (PACKAGE, KERNELS) for p in top.rglob("*.py")
    )
    files = [name for name in files if covers(name)]
    if not path:
        return SourceView("", "", files)
    if path not in files:
        raise ConfigError(f"{plain(path, 80)!r} is not to be patched; {nearest(path[:80], files)}")
    return SourceView(path, (root / path).read_text(encoding="utf-8"), [])


def _evidence(e: Any) -> str:
    return (
        f"{e.statistic} of {e.metric} over updates {e.first_step} to {e.last_step}: {e.value:.4g}, "
        f"{e.direction} {e.threshold:.4g}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_known(metric: str) -> bool:
    try:
        spec_of(metric)
    except KeyError:
        return False
    return is_name(metric.replace("/", "."))
