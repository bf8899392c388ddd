# SPDX-License-Identifier: Apache-2.0
"""Round and round without anybody at the desk: nobody's seat, inside an envelope that a person signed.

    pilot ─► diagnosis ─► proposals ─► draft ─► run ─► adoption ─┐        ladder ─► forecast ─► trial
                 └───────────────────── so many rounds ◄─────────┘

Every step is one of the desk's, passes its gates, and leaves its records.  What comes next follows
from the ledger alone, so the same command goes on after a stop.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research.desk import drafting, person, trials
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.gates import Standing
from jaxlm.research.desk.priors import applicable
from jaxlm.research.desk.records import Project
from jaxlm.research.plan import job_run
from jaxlm.research.seats import offline
from jaxlm.research.trial import scaled
from jaxlm.telemetry.readable import number

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """How far it goes."""

    rounds: int = 3
    arms: int = 4  # of each round's draft
    seeds: int = 3  # of each arm, and as many fresh ones of what it keeps
    smallest_effect: float = 0.005  # bits per byte
    widths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)  # of the trial, the last one forecast
    ladder_seeds: int = 3
    trial_seeds: int = 5

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("arms", 1), ("seeds", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} must be >= {least}, got {getattr(self, name)}")
        if not self.smallest_effect >= 0:
            raise ConfigError(f"--smallest-effect must be >= 0, got {self.smallest_effect}")
        trials.check_trial(self.widths, self.trial_seeds, self.ladder_seeds)


def begin(
    desk: Desk, project: Project, terms: Terms, hours: float, ask: person.Ask = person.at_terminal
) -> bool:
    """Fixes the project where there is none, and has its envelope signed: the one question.

    False where the person did not agree.  Raises ConfigError for a folder that holds another project.
    """
    known = desk.ledger.of_kind("project")
    if known and (known[-1]["config"], known[-1]["overrides"]) != (
        list(project.config),
        list(project.overrides),
    ):
        raise ConfigError(
            f"{desk.project} holds a project of {' '.join(known[-1]['config'])}; give another --project"
        )
    if not known:
        person.begin(desk, project)
    if envelope(desk.standing()) is not None:
        return True
    wanted = fields(desk.config(), terms)
    return person.sign_envelope(desk, wanted, project.max_flops, hours, ask, adopts=True)


def fields(config: RunConfig, terms: Terms) -> list[str]:
    """What the library's ideas may change in a config, and what makes it larger."""
    ideas = {field for _, changes in applicable(config) for field in changes}
    return sorted(ideas | set(scaled(config, terms.widths[-1])))


def most_flops(
    config: RunConfig, load: Callable[[dict[str, str]], RunConfig], terms: Terms
) -> float:
    """Of all that it may run."""
    grown = drafting.FAIR**terms.rounds
    trial = trials.trial_flops(config, load, terms.widths, terms.trial_seeds, terms.ladder_seeds)
    return trials.most_flops(config, terms.rounds, terms.arms, terms.seeds) + grown * trial


def go_on(desk: Desk, terms: Terms, say: Say) -> None:
    """Step after step, to the trial's score; or to the end of ideas that help.

    Raises RunError where a draft is refused by its check or not covered by the envelope.
    """
    while _step(desk, terms, say):
        pass


def _step(desk: Desk, terms: Terms, say: Say) -> bool:
    """The next one; False where nothing is left to do."""
    standing = desk.standing()
    for name, why in standing.unanswered.items():
        if (
            standing.drafts[name]["base"] == desk.config().config_id
        ):  # what follows would begin alike
            raise RunError(why)
    for name, state in standing.states.items():
        if state in ("approved", "running"):
            desk.run(name)
            return True
        if state == "confirmed" and (arm := _best(desk, name)) is not None:
            desk.adopt_within_envelope(name, arm)
            say(f"adopted: {arm}")
            return True
        if state == "checked":
            raise RunError(
                f"draft {name[:12]} waits for you: `jaxlm research approve {name[:12]}` or `refuse`, "
                "then the same command again"
            )
    drafts = standing.drafts.values()
    if not drafts:
        return _enter(desk, say, "pilot", trials.pilot(desk))
    if any(draft.get("widths") for draft in drafts):
        return False
    rounds = sum(bool(draft["proposals"]) for draft in drafts)
    if rounds < terms.rounds and (chosen := _proposals(desk, terms, say)):
        titles = ", ".join(p["title"] for p in desk.find_proposals(chosen))
        hypothesis = f"one of these lowers the loss: {titles}"
        made = drafting.draft(desk, chosen, hypothesis, terms.seeds, terms.smallest_effect)
        return _enter(desk, say, f"round {rounds + 1} of {terms.rounds}: {titles}", made)
    if not trials.adopted_changes(desk):
        say(
            "nothing was adopted of the config's fields, so there is nothing to try at a larger size"
        )
        return False
    made = trials.trial(desk, terms.widths, terms.trial_seeds, terms.ladder_seeds)
    return _enter(desk, say, "trial at " + ", ".join(f"x{w:g}" for w in terms.widths), made)


def _enter(desk: Desk, say: Say, what: str, draft: Any) -> bool:
    say(f"{what}; at most {number(draft.flops)}FLOPs")
    view = desk.enter(draft)
    if view.state == "refused":
        raise RunError(f"draft {view.id[:12]} did not pass its check: {'; '.join(view.problems)}")
    return True


def _proposals(desk: Desk, terms: Terms, say: Say) -> list[str]:
    """Ids: what the round before kept and could not adopt, then the ideas most worth their compute."""
    _look(desk, say)
    chosen = _kept_before(desk.standing(), desk)
    covered = envelope(desk.standing()) or {}
    allowed = set(covered.get("fields", ()))
    for idea in desk.ideas():
        if len(chosen) >= terms.arms:
            break
        if idea.tried_as is None and set(idea.changes) <= allowed:
            why = f"expected gain per FLOP: {idea.score:.3g} per 1e15"
            made = desk.propose(idea.title, idea.changes, why, idea.effect, idea.low, idea.high)
            if made.repeats is None:
                chosen.append(made.id)
    return chosen[: terms.arms]


def _look(desk: Desk, say: Say) -> None:
    """Diagnoses a run of the config as it is now, once."""
    config = desk.config()
    name = job_run(config, config.train.seed, desk.project).directory.name
    if any(d["run"] == name for d in desk.ledger.of_kind("diagnosis")):
        return
    found = offline.look(desk, name)
    say(f"diagnosis of {name}: " + (", ".join(f.cause for f in found) or "nothing wrong"))


def _kept_before(standing: Standing, desk: Desk) -> list[str]:
    """Proposals that the newest round kept beside the one it adopted, where they change other fields."""
    rounds = [name for name, draft in standing.drafts.items() if draft["proposals"]]
    adopted = {a["draft"]: a for a in standing.adopted}
    if not rounds or rounds[-1] not in adopted:
        return []
    name, taken = rounds[-1], adopted[rounds[-1]]
    found = desk.find_proposals(standing.drafts[name]["proposals"])
    return [
        p["id"]
        for p in found
        if p["title"] in standing.kept[name] and not set(p["changes"]) & set(taken["changes"])
    ]


def _best(desk: Desk, draft: str) -> str | None:
    """Of the arms that a confirmed draft kept; None where something departed from its protocol."""
    outcome = next(o for o in desk.ledger.of_kind("outcome") if o["draft"] == draft)
    reviews = {r["protocol"]: r for r in desk.ledger.of_kind("review")}
    verdicts = reviews[outcome["protocols"][-1]]["verdicts"]
    kept = [v for v in verdicts if v["arm"] in outcome["kept"]]
    if outcome["is_exploratory"] or not kept:
        return None
    return str(min(kept, key=lambda v: v["effect"])["arm"])


def envelope(standing: Standing) -> dict[str, Any] | None:
    """The newest one that adopts, and has not ended."""
    open_ones = [
        e for e in standing.envelopes.values() if e.get("adopts") and e["until"] > time.time()
    ]
    return open_ones[-1] if open_ones else None
