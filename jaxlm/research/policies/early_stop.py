# SPDX-License-Identifier: Apache-2.0
"""Greedy that stops losers early, and measures how often it was wrong to.

Each candidate runs on the incumbent's seed and is compared with the incumbent's own curve at the same
fractions of training (futility.py).  A random 7 % of the would-be kills run on: the audit arm.
Its share of wins, with a Clopper-Pearson interval, estimates the false-kill rate; it is in the notes,
next to the compute that was saved.
"""

import dataclasses
from collections.abc import Generator, Sequence

import numpy as np

from jaxlm.research.policies.base import BASELINE, Knowledge, Losses, Outcome, Plan, Purse, Trial
from jaxlm.research.policies.futility import Futility, share_interval

FALSE_KILLS = 0.08  # mean predicted win probability of kills; 0.02 to 0.04 turn out to be so
MAX_P_WIN = 0.35  # of any one of them
AUDIT = 0.07  # of would-be kills


@dataclasses.dataclass
class _State:
    purse: Purse
    seed: int
    rungs: tuple[float, ...]
    history: dict[float, Futility]
    rng: np.random.Generator
    curve: dict[float, float] = dataclasses.field(default_factory=dict)  # of the incumbent
    least: float = 0.0
    num_run: int = 0
    saved: float = 0.0
    risk: tuple[float, int] = (0.0, 0)  # sum of p_win of would-be kills, their number
    num_audited: int = 0
    num_wrong: int = 0
    killed: list[tuple[Trial, float]] = dataclasses.field(default_factory=list)


def early_stop(ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge) -> Plan:
    """Greedy over the ideas once; notes: saved share, audited kills, wrong ones, their interval."""
    first = knowledge.early_fraction
    rungs = tuple(first + (1 - first) * part for part in (0.0, 0.25, 0.5, 0.75, 1.0))
    purse = Purse(budget, knowledge.scale_costs)
    history = {f: Futility() for f in rungs[:-1]}
    state = _State(purse, seed, rungs, history, np.random.default_rng(seed))
    state.least = knowledge.smallest_effect
    kept, effects = BASELINE, dict[str, float]()
    state.curve = yield from _whole(state, BASELINE)
    start = state.curve.get(1.0)
    for idea in ideas if start is not None else ():
        if not purse.affords([Trial(kept | {idea}, seed)]):
            break
        best = state.curve[1.0]
        curve = yield from _candidate(state, kept | {idea})
        if curve.get(1.0, np.inf) < best - state.least:
            effects[idea] = curve[1.0] - best
            kept, state.curve = kept | {idea}, curve
    gain = start - state.curve[1.0] if start is not None else 0.0
    return Outcome(kept, gain, effects=effects, notes=_notes(state), killed=tuple(state.killed))


def _whole(
    state: _State, arm: frozenset[str]
) -> Generator[list[Trial], Losses, dict[float, float]]:
    """The arm's curve: {fraction: loss}, without what did not complete."""
    trials = [Trial(arm, state.seed, f) for f in state.rungs]
    state.purse.pay(trials)
    losses = yield trials
    return {f: loss for f, loss in zip(state.rungs, losses, strict=True) if loss is not None}


def _candidate(
    state: _State, arm: frozenset[str]
) -> Generator[list[Trial], Losses, dict[float, float]]:
    """The candidate's curve, up to where it was stopped."""
    curve: dict[float, float] = {}
    is_audit = False
    state.num_run += 1
    for f in state.rungs:
        trials = [Trial(arm, state.seed, f)]
        state.purse.pay(trials)
        loss = (yield trials)[0]
        if loss is None:
            return {}
        curve[f] = loss
        if f == 1.0 or is_audit or not _is_lost(state, f, loss):
            continue
        is_audit = bool(state.rng.random() < AUDIT)
        if not is_audit:
            state.saved += 1 - f
            state.killed.append((Trial(arm, state.seed), state.curve[1.0] - state.least))
            return curve
    for f, seen in state.history.items():
        seen.add(curve[f] - state.curve[f], curve[1.0] - state.curve[1.0])
    state.num_audited += is_audit
    state.num_wrong += is_audit and curve[1.0] < state.curve[1.0] - state.least
    return curve


def _is_lost(state: _State, fraction: float, loss: float) -> bool:
    """Whether the run may be stopped within the allowance of false kills so far."""
    difference = loss - state.curve[fraction]
    p_win = state.history[fraction].p_win(difference, -state.least)
    total, count = state.risk
    if p_win >= MAX_P_WIN or total + p_win > FALSE_KILLS * (count + 1):
        return False
    state.risk = (total + p_win, count + 1)
    return True


def _notes(state: _State) -> dict[str, float]:
    low, high = share_interval(state.num_wrong, state.num_audited)
    return {
        "saved_share": state.saved / max(1, state.num_run), "kills": len(state.killed),
        "audited": state.num_audited, "audited_wrong": state.num_wrong,
        "false_kill_low": low, "false_kill_high": high,
    }  # fmt: skip
