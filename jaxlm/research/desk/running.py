# SPDX-License-Identifier: Apache-2.0
"""An approved draft, carried out: the one place where the desk spends compute.

What runs is rebuilt from the draft, and must hash to it: config files, data or code that changed
since the approval make it another question, which nobody approved.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jaxlm.config import RunConfig
from jaxlm.core.canonical import content_id
from jaxlm.core.errors import RunError, UnanswerableError
from jaxlm.research import fingerprint
from jaxlm.research.budget import Budget
from jaxlm.research.campaign import Question, Stage, run_campaign, run_pilot
from jaxlm.research.desk import drafting, gates, trials
from jaxlm.research.desk.signing import read_key
from jaxlm.research.patch.diff import changed_files
from jaxlm.research.plan import Rules, Seeds, Setting
from jaxlm.research.records import BASELINE, PATCH, arm_id
from jaxlm.research.runner import Means
from jaxlm.research.trial import run_trial

if TYPE_CHECKING:
    from jaxlm.research.desk.desk import Desk


def run_draft(desk: "Desk", name: str, means: Means) -> list[Stage]:
    """Starts it, or goes on with it after a stop; ends with its outcome in the ledger.

    Raises RunError for a draft that is not approved, that is another question by now, or while the
    kill switch is on; UnanswerableError, with the reason in the ledger, where its baseline allows no
    comparison.
    """
    standing = desk.standing()
    draft = standing.drafts[name]
    carry_out = _carrier(desk, draft)
    if standing.states[name] != "running":
        gates.append(desk.ledger, read_key(), "start", {"draft": name, "by": desk.seat})
    means = dataclasses.replace(means, approved_by=f"draft {name}")
    try:
        with _watched(desk) as stop:
            workers = dataclasses.replace(means.workers, stop=stop)
            stages = carry_out(dataclasses.replace(means, workers=workers))
    except UnanswerableError as e:
        nothing = _outcome(name, draft, [], unanswered=str(e))
        gates.append(desk.ledger, read_key(), "outcome", nothing)
        raise
    gates.append(desk.ledger, read_key(), "outcome", _outcome(name, draft, stages))
    return stages


def _outcome(
    name: str, draft: dict[str, Any], stages: list[Stage], unanswered: str | None = None
) -> dict[str, Any]:
    """A pilot has no stages, and a trial keeps nothing: what it tries was adopted before."""
    is_question = bool(stages) and not draft.get("widths")
    last = stages[-1].review if is_question else None
    return {
        "draft": name,
        "protocols": [stage.protocol.id for stage in stages],
        "kept": [v["arm"] for v in last.verdicts if v["decision"] == "keep"] if last else [],
        "is_confirmed": is_question and stages[-1].protocol.stage == "confirmation",
        "is_exploratory": any(stage.review.is_exploratory for stage in stages),
        "claim": last.claim if last else None,
        "unanswered": unanswered,
    }


def _carrier(desk: "Desk", draft: dict[str, Any]) -> Callable[[Means], list[Stage]]:
    """What a draft asks for, as it was approved."""
    if draft.get("widths"):
        _check_unchanged(draft, trials.configured(desk, {}), {})
        widths = list(trials.widths_of(desk, draft))
        return lambda means: run_trial(widths, Rules(metric=draft["metric"]), means)
    question = _question(desk, draft)
    if draft["arms"]:
        return lambda means: run_campaign(question, means)

    def pilot(means: Means) -> list[Stage]:
        run_pilot(question.settings[0], question.rules, means)
        return []

    return pilot


@contextlib.contextmanager
def _watched(desk: "Desk") -> Iterator[threading.Event]:
    """Gives an event that ends workers: set by the kill switch, or when the project's hours are spent.

    Not a signal: an MCP server runs drafts on a thread, where none arrives.
    """
    stop, done = threading.Event(), threading.Event()
    closed = _closed(desk.standing())
    if closed is not None:
        raise RunError(closed)

    def watch() -> None:
        seen, standing = 0, desk.standing()
        while not stop.is_set():
            size = desk.ledger.path.stat().st_size
            if size != seen:
                seen, standing = size, desk.standing()
            if _closed(standing):
                stop.set()
            elif done.wait(0.5):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield stop
    except RunError as e:
        reason = _closed(desk.standing()) if stop.is_set() else None
        if reason is None:
            raise
        raise RunError(reason) from e
    finally:
        done.set()


def _closed(standing: gates.Standing) -> str | None:
    """Why what runs must end; None where it may go on."""
    if standing.is_halted:
        return "halted by the kill switch; `jaxlm research resume`, then the same command again"
    if gates.is_over(standing, time.time()):
        return (
            "the project's hours are spent; `jaxlm research init` with a larger --max-hours, then the "
            "same command again"
        )
    return None


def _setting(
    desk: "Desk", draft: dict[str, Any], arm: dict[str, Any], config: RunConfig
) -> Setting:
    """Raises ConfigError for a patch that may not be tried any more."""
    if PATCH not in arm["changes"]:
        return Setting(arm["name"], arm["changes"], config)
    standing = desk.standing()
    diff = standing.patches[arm["changes"][PATCH]]["diff"]
    changed_files(diff, desk.paths())
    weaker = bool(standing.consents.get(draft["id"], {}).get("is_weaker_allowed"))
    return Setting(arm["name"], arm["changes"], config, diff, weaker)


def _question(desk: "Desk", draft: dict[str, Any]) -> Question:
    base = desk.config()
    configs = {arm["name"]: desk.config(arm["changes"]) for arm in draft["arms"]}
    _check_unchanged(draft, base, configs)
    settings = [Setting(BASELINE, {}, base)]
    settings += [_setting(desk, draft, arm, configs[arm["name"]]) for arm in draft["arms"]]
    promote = tuple(draft["promote"])
    larger = [
        dataclasses.replace(s, config=desk.config(s.changes or None, promote))
        for s in (settings if promote else [])
    ]
    rules = Rules(
        metric=draft["metric"],
        smallest_effect=draft["smallest_effect"],
        hypothesis=draft["hypothesis"],
        predicted=tuple(draft["predicted"]),
        budget=Budget(draft["flops"], "flops"),
        promote=promote,
        confirm=draft["confirm"],
    )
    return Question(
        settings=settings, larger=larger, seeds=Seeds(count=draft["seeds"]), rules=rules
    )


def _check_unchanged(
    draft: dict[str, Any], base: RunConfig, configs: Mapping[str, RunConfig]
) -> None:
    """configs: of the arms that are to be compared with what was approved, by name."""
    now = {
        "base": base.config_id,
        "data_id": drafting.data_id(base),
        "code": fingerprint.training_code(),
        "evaluator": fingerprint.evaluator(),
    }
    changed = [k for k in now if now[k] != draft[k]]
    for arm in draft["arms"]:
        config = configs.get(arm["name"])
        if config is not None and arm_id(config.config_id, arm["changes"]) != arm["config_id"]:
            changed.append(arm["name"])
    body = {k: v for k, v in draft.items() if k != "id"}
    if changed or content_id(body) != draft["id"]:
        what = ", ".join(changed) or "its text"
        raise RunError(
            f"draft {draft['id'][:12]} is not what was approved any more ({what} changed); draft it anew"
        )
