# SPDX-License-Identifier: Apache-2.0
"""Proposals and drafts: made, ranked, and checked by a program before a person is asked.

A check finds what would make an answer worthless or the question unfair: arms that were tried,
that change nothing, that spend more than the baseline, or that the project cannot pay for.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.research import fingerprint
from jaxlm.research.budget import run_flops
from jaxlm.research.desk import novelty
from jaxlm.research.desk.priors import Idea, applicable
from jaxlm.research.desk.quoting import plain
from jaxlm.research.desk.rank import Belief, score, updated
from jaxlm.research.desk.records import Changes, Draft, DraftArm, Proposal
from jaxlm.research.desk.views import IdeaView
from jaxlm.research.patch.diff import changed_files
from jaxlm.research.records import BASELINE, PATCH, arm_id, check_name

if TYPE_CHECKING:
    from jaxlm.research.desk.desk import Desk

METRIC = "eval/bpb"
FAIR = 1.05  # an arm may cost this much of the baseline's FLOPs; more buys its gain
SEEDS = 4  # that a rank assumes
NOISE = 0.003  # of one paired difference, as a share of the metric, until the ledger knows better
FINDING = 2.0  # how much more an idea may do that answers a finding
TYPICAL = 2.0  # bits per byte, where no run tells

Tried = list[tuple[str, novelty.Difference]]


# -- proposals ---------------------------------------------------------------------------------


def propose(
    desk: "Desk", title: str, changes: Changes, why: str, predicted: tuple[float, float, float],
    meaning: str | None = None,
) -> tuple[Proposal, str | None]:  # fmt: skip
    """A proposal, and the name of what it repeats or None.  Writes nothing.

    meaning: of the patch among the changes, where there is one

    Raises ConfigError for fields that may not be changed, values out of range, and an interval
    that does not hold the effect, and a title that cannot name an arm.
    """
    effect, low, high = predicted
    if not (all(map(math.isfinite, predicted)) and low <= effect <= high):
        raise ConfigError(f"the interval {low:g} to {high:g} must hold the effect {effect:g}")
    check_name(plain(title, 80), f"title {title[:80]!r}")
    base, config = desk.config(), desk.config(changes)
    change = novelty.difference(base, config)
    if meaning is not None:
        change[PATCH] = meaning
    if not change:
        raise ConfigError(f"{plain(title, 80)!r} changes nothing that is computed")
    sd = max((high - low) / (2 * 1.6449), 1e-9)
    belief = Belief(effect, sd)
    noise = NOISE * level(desk)
    proposal = Proposal(
        title=plain(title, 80),
        changes=changes,
        why=plain(why, 600),
        by=desk.seat,
        metric=METRIC,
        predicted=predicted,
        flops=run_flops(config),
        base=base.config_id,
        score=score(belief, noise, SEEDS, run_flops(config)),
    )
    return proposal, novelty.earlier(change, tried(desk))


def ideas(desk: "Desk") -> list[IdeaView]:
    """The library's ideas for the project's config, best expected gain per FLOP first."""
    base, known, seen = desk.config(), tried(desk), effects(desk)
    answers = {finding["cause"] for finding in findings(desk)}
    found = []
    for idea, changes in applicable(base):
        try:
            config = desk.config(changes)
        except ConfigError:  # out of range together with what the config has
            continue
        change = novelty.difference(base, config)
        if change and run_flops(config) <= FAIR * run_flops(base):
            belief = _belief(idea, change, answers, seen, level(desk))
            worth = score(belief, NOISE * level(desk), SEEDS, run_flops(config))
            earlier = novelty.earlier(change, known)
            found.append(IdeaView(idea.title, changes, *belief.interval, worth, earlier))
    return sorted(found, key=lambda idea: (idea.tried_as is not None, -idea.score))


def _belief(
    idea: Idea, change: novelty.Difference, answers: set[str], seen: list[tuple[set[str], Belief]],
    level: float,
) -> Belief:  # fmt: skip
    prior = Belief(idea.effect * level, idea.sd * level)
    if answers & set(idea.answers):
        prior = Belief(-FINDING * abs(prior.sd), FINDING * prior.sd)
    return updated(prior, [belief for fields, belief in seen if fields == set(change)])


def tried(desk: "Desk") -> Tried:
    """Everything proposed or asked before, as differences to the config that it was asked of."""
    found: Tried = []
    base = desk.config()
    for record in desk.records():
        changes = []
        if record.kind == "proposal":
            changes = [(record.body["title"], record.body["changes"])]
        elif record.kind == "protocol":
            changes = [(a["name"], a["changes"]) for a in record.body["arms"] if a["changes"]]
        for name, change in changes:
            try:
                found.append((name, _difference(desk, base, change)))
            except ConfigError:  # a field that only a person may vary, or one that is gone
                continue
    return [(name, difference) for name, difference in found if difference]


def _difference(desk: "Desk", base: RunConfig, changes: Changes) -> novelty.Difference:
    code = {}
    if PATCH in changes and changes[PATCH] in (patches := desk.standing().patches):
        code[PATCH] = patches[changes[PATCH]]["meaning"]
    return novelty.difference(base, desk.config(changes)) | code


def effects(desk: "Desk") -> list[tuple[set[str], Belief]]:
    """What the ledger's reviews know: the fields that were varied, and the effect found."""
    arms = {
        (p["id"], arm["name"]): arm["changes"] for p in desk.ledger.of_kind("protocol") for arm in p["arms"]
    }  # fmt: skip
    found = []
    base = desk.config()
    for review in desk.ledger.of_kind("review"):
        for verdict in review["verdicts"]:
            changes = arms.get((review["protocol"], verdict["arm"]), {})
            low, high = verdict.get("low"), verdict.get("high")
            if changes and verdict["effect"] is not None and low is not None and high is not None:
                try:
                    fields = set(_difference(desk, base, changes))
                except ConfigError:
                    continue
                found.append((fields, Belief(verdict["effect"], max(high - low, 1e-9) / 3.92)))
    return found


def findings(desk: "Desk") -> list[dict[str, Any]]:
    """Of the newest diagnosis."""
    told = desk.ledger.of_kind("diagnosis")
    return list(told[-1]["findings"]) if told else []


def level(desk: "Desk") -> float:
    """The metric of the newest judged baseline: what an effect in per cent is a part of."""
    for run in reversed(desk.ledger.of_kind("run")):
        if run["arm"] == BASELINE and run["metric"] is not None and run["evaluation"]:
            return float(run["evaluation"].get(METRIC, TYPICAL))
    return TYPICAL


# -- drafts ------------------------------------------------------------------------------------


def draft(
    desk: "Desk", proposals: Sequence[str], hypothesis: str, seeds: int, smallest_effect: float
) -> Draft:
    """One question of some proposals.  Raises ConfigError for what cannot be asked."""
    if not 1 <= len(proposals) <= 12:
        raise ConfigError(f"a draft asks about 1 to 12 proposals, got {len(proposals)}")
    if not 2 <= seeds <= 16:
        raise ConfigError(f"seeds must be in 2..16, got {seeds}: one shows no noise")
    if not 0 <= smallest_effect < math.inf:
        raise ConfigError(f"smallest_effect must be >= 0, got {smallest_effect:g}")
    chosen = desk.find_proposals(proposals)
    titles = [p["title"] for p in chosen]
    if len(set(titles)) < len(titles):
        raise ConfigError(
            f"two proposals are called {max(titles, key=titles.count)!r}; ask about them in two drafts"
        )
    base = desk.config()
    configs = [desk.config(p["changes"]) for p in chosen]
    best = min(chosen, key=lambda p: p["predicted"][0])
    confirm = seeds
    per_seed = run_flops(base) + sum(map(run_flops, configs))
    project = desk.standing().project
    assert project is not None
    scale = tuple(project["promote"])
    larger = [desk.config(changes, scale) for changes in (None, *(p["changes"] for p in chosen))]
    # all arms, the baseline's curve of three lengths, all again where they are promoted, and a
    # confirmation of all that is kept
    total = seeds * per_seed + 2 * run_flops(base)
    of_larger = sum(map(run_flops, larger))
    total += (seeds if scale else 0) * of_larger + confirm * of_larger
    return Draft(
        hypothesis=plain(hypothesis, 300),
        proposals=tuple(p["id"] for p in chosen),
        arms=tuple(
            DraftArm(
                name=p["title"],
                changes=p["changes"],
                config_id=arm_id(config.config_id, p["changes"]),
            )
            for p, config in zip(chosen, configs, strict=True)
        ),
        base=base.config_id,
        seeds=seeds,
        confirm=confirm,
        promote=scale,
        metric=METRIC,
        smallest_effect=smallest_effect,
        predicted=tuple(best["predicted"]),
        flops=total,
        data_id=data_id(base),
        code=fingerprint.training_code(),
        evaluator=fingerprint.evaluator(),
        by=desk.seat,
    )


def data_id(config: RunConfig) -> str:
    from jaxlm.data.prepare import prepare

    return prepare(config.data).data_id


def check(desk: "Desk", draft: Draft) -> list[str]:
    """What is wrong with a draft, a line each; none where a person may be asked."""
    return list(_problems(desk, draft))


def _problems(desk: "Desk", draft: Draft) -> Iterator[str]:
    from jaxlm.research.desk import trials

    yield from trials.problems(desk, draft) if draft.widths else _question_problems(desk, draft)
    standing = desk.standing()
    assert standing.project is not None
    left = standing.project["max_flops"] - standing.flops
    if draft.flops > left:
        yield f"needs {draft.flops:.3g} FLOPs; the project has {left:.3g} left"


def _question_problems(desk: "Desk", draft: Draft) -> Iterator[str]:
    base = desk.config()
    if draft.base != base.config_id:
        yield "its baseline is not the project's config any more"
    if len({arm.config_id for arm in draft.arms} | {draft.base}) != len(draft.arms) + 1:
        yield "two of its arms, or an arm and the baseline, are the same config"
    asked = desk.ledger.of_kind("protocol")
    known = {arm["config_id"] for p in asked for arm in p["arms"] if arm["changes"]}
    for arm in draft.arms:
        config = desk.config(arm.changes)
        if arm_id(config.config_id, arm.changes) != arm.config_id:
            yield f"{arm.name}: its config is not the one that was proposed"
        share = run_flops(config) / run_flops(base)
        if share > FAIR:
            yield f"{arm.name}: costs {share:.2f} of the baseline's FLOPs; more than {FAIR} is unfair"
        if arm.config_id in known:
            yield f"{arm.name}: was tried before"
        if PATCH in arm.changes:
            yield from _patch_problems(desk, arm)


def _patch_problems(desk: "Desk", arm: DraftArm) -> Iterator[str]:
    known = desk.standing().patches.get(arm.changes[PATCH])
    if known is None:
        yield f"{arm.name}: its patch is not in the ledger"
        return
    try:
        changed_files(known["diff"], desk.paths())
    except ConfigError as e:
        yield f"{arm.name}: {e}"
