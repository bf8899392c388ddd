# SPDX-License-Identifier: Apache-2.0
"""Everything that the page can show, kept up to date while somebody looks."""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.core.errors import ConfigError, UserError
from jaxlm.dash.curve import Point
from jaxlm.dash.doors import Doors
from jaxlm.dash.findings import Findings
from jaxlm.dash.runs import Run, Runs, rounded
from jaxlm.dash.story import Story
from jaxlm.telemetry.registry import METRICS

if TYPE_CHECKING:
    from jaxlm.research.desk.desk import Desk

LOOK_EVERY_S = 0.5
HEARTBEAT_S = 10.0  # of a stream that has nothing to say: so that a closed browser is noticed
AT = "dash"  # where a person's answer was given, in its record


class House:
    """Runs, ledger and doors.  One thread looks; streams and requests read under one lock.

    desk: makes the desk at first use, since it takes longer to import than a page takes to open
    """

    def __init__(
        self, folders: Sequence[Path], project: Path, desk: Callable[[], "Desk"], doors: Doors
    ) -> None:
        self.desk, self.doors, self.project = functools.cache(desk), doors, project
        self.runs, self.story = Runs(folders), Story(project, self.desk)
        self.findings = Findings()
        self._news = threading.Condition()
        self._versions: dict[str, int] = {}  # of each run's card, "" for the story
        self._counter = itertools.count(1)
        self._num_watching = 0

    # -- looking -------------------------------------------------------------------------------

    def look(self) -> None:
        """Reads what is new, and wakes the streams where there is any."""
        with self._news:
            changed, gone = self.runs.look()
            if self.story.look():
                changed += ["", *self._relabelled()]
            for key in [*changed, *gone]:
                self._versions[key] = next(self._counter)
            if changed or gone:
                self._news.notify_all()

    def _relabelled(self) -> list[str]:
        """Runs of the project that a new record gave a name."""
        labels = self.story.labels()
        changed = []
        for run in self.runs.found.values():
            label = self._label(run, labels)
            if label != run.card.get("label"):
                changed.append(run.key)
        return changed

    def _label(self, run: Run, labels: dict[str, str]) -> str:
        try:
            directory = str(run.directory.relative_to(self.project))
        except ValueError:
            return run.directory.name
        return labels.get(directory, run.directory.name[:12])

    def watch(self) -> None:
        """Looks for as long as the process lives, and only while somebody watches."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._num_watching > 0)
            self.look()
            threading.Event().wait(LOOK_EVERY_S)

    def news(self, cookie: str | None) -> Iterator[dict[str, Any] | None]:
        """Messages for one browser, the first with all there is; None: nothing new for a while."""
        seen, told_open = 0, None
        with self._news:
            self._num_watching += 1
            self._news.notify_all()
        try:
            while True:
                with self._news:
                    is_open = self.doors.is_open_to(cookie)
                    fresh = {k: v for k, v in self._versions.items() if v > seen}
                    if not fresh and told_open == is_open:
                        self._news.wait(HEARTBEAT_S)
                        fresh = {k: v for k, v in self._versions.items() if v > seen}
                    message = self._message(fresh)
                    if told_open != is_open:
                        message |= {"doors": self._doors(is_open)}
                    told_open, seen = is_open, max([seen, *fresh.values()])
                yield message or None
        finally:
            with self._news:
                self._num_watching -= 1

    def _message(self, fresh: dict[str, int]) -> dict[str, Any]:
        """What changed: cards, keys of runs that are gone, the story."""
        labels = self.story.labels()
        message: dict[str, Any] = {}
        for key in fresh:
            run = self.runs.found.get(key)
            if key == "":
                message["story"] = self.story.told
            elif run is None:
                message.setdefault("gone", []).append(key)
            else:
                card = run.card | {"label": self._label(run, labels)}
                run.card["label"] = card["label"]
                message.setdefault("cards", []).append(card)
        return message

    def _doors(self, is_open: bool) -> dict[str, Any]:
        why = self.doors.why_shut or "open the link that the terminal showed"
        return {"is_open": is_open, "why": None if is_open else why}

    # -- answering -----------------------------------------------------------------------------

    def curves(self, key: str, metrics: Sequence[str]) -> dict[str, Any]:
        """Points and means of some metrics, by column; `metrics` lists all that the run has.

        Raises ConfigError for an unknown run.
        """
        with self._news:
            tail = self.runs.curves(key)
            if tail is None:
                raise ConfigError(f"no run {key[:80]!r} here")
            flops = flops_per_step(self.runs.found[key].config)
            found = {
                name: {"points": columns(curve.points), "means": columns(curve.means)}
                for name, curve in tail.curves.items()
                if name in metrics
            }
            is_whole, known = not tail.is_behind, sorted(tail.curves)
        return {
            "key": key, "curves": found, "metrics": known, "flops_per_step": flops,
            "is_whole": is_whole,
        }  # fmt: skip

    def finding(self, key: str) -> dict[str, Any]:
        run = self.runs.found.get(key)
        if run is None:
            raise ConfigError(f"no run {key[:80]!r} here")
        return self.findings.of(run.directory)

    # -- what a person does ----------------------------------------------------------------------

    def ask(self, act: str, draft: str, arm: str | None) -> None:
        """Puts a gate's own question to the terminal, with a code to answer it by."""
        self._press(act, draft, arm, self.doors.show)

    def answer(self, act: str, draft: str, arm: str | None, typed: str) -> None:
        """The gate again, with what the person typed.  Raises UserError where it does not agree."""
        self._press(act, draft, arm, self.doors.answered(typed))
        self.look()

    def refuse(self, draft: str, why: str) -> None:
        from jaxlm.research.desk import person

        person.refuse(self.desk(), draft, why, at=AT)
        self.look()

    def _press(self, act: str, draft: str, arm: str | None, ask: Any) -> None:
        from jaxlm.research.desk import person

        if act == "approve":
            person.approve(self.desk(), draft, ask, at=AT)
        elif act == "adopt":
            person.adopt(self.desk(), draft, str(arm), ask, at=AT)
        else:
            raise ConfigError(f"act must be approve or adopt, got {act[:40]!r}")


def columns(points: Sequence[Point]) -> dict[str, list[Any]]:
    """Points as the page wants them: one list an axis."""
    return {
        "step": [at.step for at, _ in points],
        "tokens": [at.tokens for at, _ in points],
        "time": [rounded(at.seconds) for at, _ in points],
        "y": [rounded(value) for _, value in points],
    }


def flops_per_step(values: dict[str, Any]) -> float | None:
    """Model FLOPs of an update, from a config.json; None for one that this version cannot read."""
    from jaxlm.config import RunConfig
    from jaxlm.core.typed import from_dict
    from jaxlm.model.accounting import train_flops_per_token

    try:
        config = from_dict(RunConfig, values)
    except UserError:
        return None
    seq_len = config.data.seq_len
    return float(train_flops_per_token(config.model, seq_len) * seq_len * config.data.batch_size)


def metrics() -> dict[str, dict[str, str]]:
    """Every registered metric: unit, direction, meaning."""
    return {
        name: {"unit": spec.unit, "direction": spec.direction, "meaning": spec.meaning}
        for name, spec in METRICS.items()
    }
