# SPDX-License-Identifier: Apache-2.0
"""Greedy that stops losers early, and measures how often it was wrong to.

Each candidate runs on the incumbent's seed and is compared with the incumbent's own curve at the same
fractions of training (futility.py): one reading says where it stands, two where it is heading.  Ideas
that change the schedule of the learning rate run to their end: their curves cross the others' there.

When all ideas were tried, the passed-over ones come again, as in greedy, but on a seed on which the
incumbent runs too; and an idea is kept when it wins over all its whole runs together, so that coming
often is no lottery.  A random 7 % of the would-be kills run on: the audit arm.  Its share of wins, with
a Clopper-Pearson interval, estimates the false-kill rate; it is in the notes, next to the compute that
was saved.
"""

import dataclasses
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from jaxlm.research.policies.base import BASELINE, Knowledge, Losses, Outcome, Plan, Purse, Trial
from jaxlm.research.policies.futility import Futility, share_interval

FALSE_KILLS = 0.015  # mean predicted win probability of kills
MAX_P_WIN = 0.35  # of any one of them
AUDIT = 0.07  # of would-be kills
READINGS = 2  # of a run, that a decision looks at
PARTS = (0.0, 0.15, 0.35, 0.55, 0.8, 1.0)  # of the training after the first full reading

Curve = Mapping[float, float]  # loss at fractions of training


@dataclasses.dataclass
class _State:
    purse: Purse
    seed: int
    rungs: tuple[float, ...]
    history: dict[float, Futility]
    rng: np.random.Generator
    knowledge: Knowledge
    curve: Curve = dataclasses.field(default_factory=dict)  # of the incumbent, on this seed
    seen: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # final differences
    saved: list[float] = dataclasses.field(default_factory=list)  # of each run begun
    risk: tuple[float, int] = (0.0, 0)  # sum of p_win of would-be kills, their number
    num_audited: int = 0
    num_wrong: int = 0
    killed: list[tuple[Trial, float]] = dataclasses.field(default_factory=list)

    def threshold(self, idea: str) -> float:
        """Final difference below which the idea is kept: its mean over whole runs then reaches."""
        before = self.seen.get(idea, [])
        return -self.knowledge.smallest_effect * (len(before) + 1) - sum(before)


def early_stop(ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge) -> Plan:
    """Notes: saved share, and that of the ideas' first runs; audited kills, wrong ones, their interval.

    Each time around takes the next seed, and costs a run at least.
    """
    first = knowledge.early_fraction
    rungs = (2 / 3 * first, *(first + (1 - first) * part for part in PARTS))
    history = {f: Futility() for f in rungs[:-1]}
    purse, rng = Purse(budget, knowledge.scale_costs), np.random.default_rng(seed)
    state = _State(purse, seed, rungs, history, rng, knowledge)
    kept, effects, todo = BASELINE, dict[str, float](), list(ideas)
    num_first = None
    while todo and purse.affords([Trial(kept, state.seed), Trial(kept | {todo[0]}, state.seed)]):
        state.curve = yield from _whole(state, kept)
        if 1.0 not in state.curve:
            break
        passed = []
        for idea in todo:
            if not purse.affords([Trial(kept | {idea}, state.seed)]):
                break
            threshold = state.threshold(idea)
            curve = yield from _candidate(state, kept, idea, threshold)
            if curve is None:
                continue  # it crashed, and need not come again
            if 1.0 in curve:
                state.seen.setdefault(idea, []).append(curve[1.0] - state.curve[1.0])
            if 1.0 in curve and curve[1.0] - state.curve[1.0] < threshold:
                effects[idea] = float(np.mean(state.seen[idea]))
                kept, state.curve = kept | {idea}, curve
            else:
                passed.append(idea)
        todo, state.seed = passed, state.seed + 1
        num_first = num_first or len(state.saved)
    gain = -sum(effects.values())
    notes = _notes(state, num_first or 0)
    return Outcome(kept, gain, effects=effects, notes=notes, killed=tuple(state.killed))


def _whole(state: _State, arm: frozenset[str]) -> Generator[list[Trial], Losses, Curve]:
    """The arm's curve, without what did not complete."""
    trials = [Trial(arm, state.seed, f) for f in state.rungs]
    state.purse.pay(trials)
    losses = yield trials
    return {f: loss for f, loss in zip(state.rungs, losses, strict=True) if loss is not None}


def _candidate(
    state: _State, kept: frozenset[str], idea: str, threshold: float
) -> Generator[list[Trial], Losses, Curve | None]:
    """The candidate's curve, up to where it was stopped; None where it crashed."""
    arm = kept | {idea}
    is_late = idea in state.knowledge.late
    curve: dict[float, float] = {}
    behind: list[float] = []  # the incumbent, at each reading
    is_audit = False
    for f in state.rungs:
        trials = [Trial(arm, state.seed, f)]
        state.purse.pay(trials)
        loss = (yield trials)[0]
        if loss is None:
            return None
        curve[f] = loss
        behind.append(loss - state.curve[f])
        if f == 1.0 or is_audit or is_late or not _is_lost(state, f, behind, threshold):
            continue
        is_audit = bool(state.rng.random() < AUDIT)
        if not is_audit:
            state.saved.append(1 - f)
            state.killed.append((Trial(arm, state.seed), state.curve[1.0] + threshold))
            return curve
    if not is_late:
        for k, seen in enumerate(state.history.values(), start=1):
            seen.add(behind[max(0, k - READINGS) : k], behind[-1])
    state.saved.append(0.0)
    state.num_audited += is_audit
    state.num_wrong += is_audit and behind[-1] < threshold
    return curve


def _is_lost(state: _State, fraction: float, behind: list[float], threshold: float) -> bool:
    """Whether the run may be stopped within the allowance of false kills so far."""
    p_win = state.history[fraction].p_win(behind[-READINGS:], threshold)
    total, count = state.risk
    if p_win >= MAX_P_WIN or total + p_win > FALSE_KILLS * (count + 1):
        return False
    state.risk = (total + p_win, count + 1)
    return True


def _notes(state: _State, num_first: int) -> dict[str, float]:
    low, high = share_interval(state.num_wrong, state.num_audited)
    return {
        "saved_share": float(np.mean(state.saved or [0.0])),
        "saved_share_first": float(np.mean(state.saved[:num_first] or [0.0])),
        "kills": len(state.killed),
        "audited": state.num_audited, "audited_wrong": state.num_wrong,
        "false_kill_low": low, "false_kill_high": high,
    }  # fmt: skip
