# SPDX-License-Identifier: Apache-2.0
"""What a run directory says so far.  Standard library only.

Any file may be missing or end early: the run may still be going on, or have been killed.
"""

import dataclasses
import json
from pathlib import Path

from jaxlm.telemetry.writer import FILE_NAME, Row


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory says."""

    name: str
    config: Row
    env: Row
    summary: Row
    train: list[Row]  # one per step, in order of step; so is evals
    evals: list[Row]
    log: list[Row]  # events and evaluations, as they were written
    samples: list[Row]
    problems: list[str]  # what could not be read


def read_run(run_dir: Path) -> Run:
    """Reads what is there; what is damaged is left out and named in `problems`."""
    problems: list[str] = []
    rows = _read_lines(run_dir / FILE_NAME, problems)
    by_step = {
        kind: {r["step"]: r for r in rows if r["kind"] == kind} for kind in ("train", "eval")
    }
    return Run(
        name=run_dir.resolve().name,
        config=_read_json(run_dir / "config.json", problems),
        env=_read_json(run_dir / "env.json", problems),
        summary=_read_json(run_dir / "summary.json", problems),
        train=[row for _, row in sorted(by_step["train"].items())],
        evals=[row for _, row in sorted(by_step["eval"].items())],
        log=[row for row in rows if row["kind"] not in ("train", "experts")],
        samples=_read_lines(run_dir / "samples.jsonl", problems),
        problems=problems,
    )


def _read_json(path: Path, problems: list[str]) -> Row:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        problems.append(f"{path.name} is damaged and was left out")
        return {}


def _read_lines(path: Path, problems: list[str]) -> list[Row]:
    if not path.exists():
        return []
    rows, num_bad = [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for line in lines[:-1]:  # what follows the last newline is a row still being written
        try:
            rows.append(json.loads(line))
        except ValueError:
            num_bad += 1
    if num_bad:
        problems.append(f"{num_bad} damaged lines of {path.name} were left out")
    return rows
