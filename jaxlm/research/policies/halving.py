# SPDX-License-Identifier: Apache-2.0
"""Successive halving and its asynchronous form: many short runs, of which the best go on.

halving: of `WIDTH` ideas on top of what is kept, all run to the first rung, the better third to the
next, and so on; the best at full length is kept if it beats the incumbent (Jamieson & Talwalkar
2016).  asha: ideas come one at a time, and one stops at a rung when it is not among the best third
seen there (Li et al. 2020), by Optuna's SuccessiveHalvingPruner; that needs the extra `research`.
"""

import importlib.util
from collections.abc import Generator, Sequence
from typing import Any

from jaxlm.core.errors import ConfigError
from jaxlm.research.policies.base import BASELINE, Knowledge, Losses, Outcome, Plan, Purse, Trial

ETA = 3
WIDTH = 9


def halving(ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge) -> Plan:
    """Brackets of nine ideas while the budget pays for a whole one."""
    purse = Purse(budget, knowledge.scale_costs)
    rungs = (knowledge.early_fraction, (1 + knowledge.early_fraction) / 2, 1.0)
    kept, effects, todo = BASELINE, dict[str, float](), list(ideas)
    start = best = (yield from _run(purse, [BASELINE], seed, 1.0))[0]
    while todo and start is not None and best is not None:
        going, todo = todo[:WIDTH], todo[WIDTH:]
        final: dict[str, float] = {}
        for rung in rungs:
            arms = [kept | {idea} for idea in going]
            if not purse.affords([Trial(arm, seed, rung) for arm in arms]):
                return Outcome(kept, start - best, effects=effects)
            losses = yield from _run(purse, arms, seed, rung)
            pairs = zip(going, losses, strict=True)
            final = {idea: loss for idea, loss in pairs if loss is not None}
            going = sorted(final, key=final.__getitem__)[: max(1, len(going) // ETA)]
        if going and final[going[0]] < best - knowledge.smallest_effect:
            effects[going[0]] = final[going[0]] - best
            kept, best = kept | {going[0]}, final[going[0]]
    return Outcome(kept, (start or 0.0) - (best or 0.0), effects=effects)


def _run(
    purse: Purse, arms: list[frozenset[str]], seed: int, fraction: float
) -> Generator[list[Trial], Losses, Losses]:
    trials = [Trial(arm, seed, fraction) for arm in arms]
    purse.pay(trials)
    return (yield trials)


def asha(ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge) -> Plan:
    """Greedy over ideas whose runs Optuna may prune.  Raises ConfigError where it is missing."""
    purse = Purse(budget, knowledge.scale_costs)
    rungs = (knowledge.early_fraction, (1 + knowledge.early_fraction) / 2, 1.0)
    study = _study()
    kept, effects = BASELINE, dict[str, float]()
    start = best = (yield from _run(purse, [BASELINE], seed, 1.0))[0]
    for idea in ideas:
        if start is None or best is None or not purse.affords([Trial(kept | {idea}, seed)]):
            break
        trial, loss, is_pruned = study.ask(), None, False
        for step, rung in enumerate(rungs, 1):
            loss = (yield from _run(purse, [kept | {idea}], seed, rung))[0]
            if loss is None:
                break
            trial.report(loss, ETA ** (step - 1))
            is_pruned = rung < 1 and trial.should_prune()
            if is_pruned:
                break
        study.tell(trial, None if is_pruned else loss, state=_state(loss, is_pruned))
        if loss is not None and not is_pruned and loss < best - knowledge.smallest_effect:
            effects[idea] = loss - best
            kept, best = kept | {idea}, loss
    return Outcome(kept, (start or 0.0) - (best or 0.0), effects=effects)


def has_optuna() -> bool:
    """Whether `asha` can run."""
    return importlib.util.find_spec("optuna") is not None


def _study() -> Any:
    if not has_optuna():
        raise ConfigError("the policy asha needs Optuna: pip install 'jaxlm[research]'")
    import optuna  # half a second, and an extra

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=ETA)
    return optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))


def _state(loss: float | None, is_pruned: bool) -> Any:
    from optuna.trial import TrialState

    if loss is None:
        return TrialState.FAIL
    return TrialState.PRUNED if is_pruned else TrialState.COMPLETE
