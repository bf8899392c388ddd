# SPDX-License-Identifier: Apache-2.0
"""Two drafts that no proposal makes: how the project's config trains, and what was reached in the end.

Like every draft they are checked, need a consent to their hash, and are paid from the project's FLOPs.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research import fingerprint
from jaxlm.research.budget import run_flops
from jaxlm.research.desk import drafting, fields
from jaxlm.research.desk.records import Changes, Draft, DraftArm
from jaxlm.research.plan import CURVE_FRACS, CURVE_SEEDS, Seeds, Setting
from jaxlm.research.records import BASELINE, PATCH
from jaxlm.research.trial import ADOPTED, Width, scaled

if TYPE_CHECKING:
    from jaxlm.research.desk.desk import Desk

FIRST_SEED = 1000  # of a trial; a campaign's own seeds lie below


def pilot(desk: "Desk") -> Draft:
    """The project's config at three lengths: noise, fitness for comparisons, a run to diagnose."""
    base = desk.config()
    return _draft(
        desk, "how the project's config trains", base, (), CURVE_SEEDS,
        CURVE_SEEDS * (1 + sum(CURVE_FRACS)) * run_flops(base),
    )  # fmt: skip


def check_trial(widths: Sequence[float], seeds: int, ladder_seeds: int) -> None:
    """Raises ConfigError for widths or seeds that carry no forecast."""
    if len(widths) < 4 or list(widths) != sorted(set(widths)) or not widths[0] > 0:
        raise ConfigError(
            f"a trial takes 4 or more rising widths, 3 to forecast the last one from, got {widths}"
        )
    if min(seeds, ladder_seeds) < 2:
        raise ConfigError(f"a trial takes 2 or more seeds, got {seeds} and {ladder_seeds}")


def trial(desk: "Desk", widths: Sequence[float], seeds: int, ladder_seeds: int) -> Draft:
    """All that was adopted against the config that the project began with, at several widths.

    seeds: at the last width; ladder_seeds: at each of the others.  Raises ConfigError for widths
    that carry no forecast, RunError where nothing was adopted.
    """
    adopted = adopted_changes(desk)
    if not adopted:
        raise RunError(
            "nothing was adopted of the config's fields, so there is nothing to try at a larger size"
        )
    check_trial(widths, seeds, ladder_seeds)
    arms, total = [], 0.0
    for factor in widths:
        count = seeds if factor == widths[-1] else ladder_seeds
        for name, changes in ((BASELINE, {}), (ADOPTED, adopted)):
            whole = changes | scaled(configured(desk, changes), factor)
            config = configured(desk, whole)
            arms.append(
                DraftArm(name=f"{name} x{factor:g}", changes=whole, config_id=config.config_id)
            )
            total += count * run_flops(config)
    hypothesis = (
        "what was adopted reaches the first config's final loss with fewer tokens, larger too"
    )
    return _draft(
        desk, hypothesis, configured(desk, {}), tuple(arms), seeds, total, confirm=ladder_seeds,
        widths=tuple(widths),
    )  # fmt: skip


def most_flops(base: RunConfig, rounds: int, arms: int, seeds: int) -> float:
    """That a pilot and `rounds` drafts may cost, each confirmed, and each arm as costly as allowed."""
    total = CURVE_SEEDS * (1 + sum(CURVE_FRACS))
    for number in range(rounds):
        whole = 2 * seeds * (1 + arms * drafting.FAIR) + CURVE_SEEDS
        total += drafting.FAIR**number * whole
    return total * run_flops(base)


def trial_flops(
    base: RunConfig, load: Any, widths: Sequence[float], seeds: int, ladder_seeds: int
) -> float:
    """That a trial may cost; `load` gives the config of a change."""
    cost = [run_flops(load(scaled(base, factor))) for factor in widths]
    counts = [ladder_seeds] * (len(widths) - 1) + [seeds]
    pairs = sum(n * one for n, one in zip(counts, cost, strict=True))
    return pairs * (1 + drafting.FAIR)


def widths_of(desk: "Desk", draft: dict[str, Any]) -> Iterator[Width]:
    """A trial's draft as what is run.  Raises RunError where an arm is another config by now."""
    first = FIRST_SEED
    pairs = zip(draft["arms"][::2], draft["arms"][1::2], strict=True)
    for factor, pair in zip(draft["widths"], pairs, strict=True):
        settings = []
        for name, arm in zip((BASELINE, ADOPTED), pair, strict=True):
            config = configured(desk, arm["changes"])
            if config.config_id != arm["config_id"]:
                raise RunError(f"{arm['name']} is not what was approved any more; draft it anew")
            settings.append(Setting(name, arm["changes"], config))
        count = draft["seeds"] if factor == draft["widths"][-1] else draft["confirm"]
        yield Width((settings[0], settings[1]), Seeds(count=count, first=first))
        first += count


def problems(desk: "Desk", draft: Draft) -> Iterator[str]:
    """What is wrong with a trial's draft."""
    if draft.base != configured(desk, {}).config_id:
        yield "its baseline is not the config that the project began with"
    for before, after in zip(draft.arms[::2], draft.arms[1::2], strict=True):
        share = run_flops(configured(desk, after.changes)) / run_flops(
            configured(desk, before.changes)
        )
        if share > drafting.FAIR:
            yield f"{after.name}: costs {share:.2f} of the baseline's FLOPs; more than {drafting.FAIR} is unfair"


def adopted_changes(desk: "Desk") -> Changes:
    """Of the config.  Adopted code is in the tree by now: both sides of a trial run it."""
    changes: Changes = {}
    for adoption in desk.standing().adopted:
        changes |= {k: v for k, v in adoption["changes"].items() if k != PATCH}
    return changes


def configured(desk: "Desk", changes: Changes) -> RunConfig:
    """The config that the project began with, changed; any number of proposable fields."""
    project = desk.standing().project
    assert project is not None
    texts = [text for field, value in changes.items() for text in fields.statements({field: value})]
    return desk.load(project["config"], [*project["overrides"], *texts])


def _draft(
    desk: "Desk", hypothesis: str, base: RunConfig, arms: tuple[DraftArm, ...], seeds: int,
    flops: float, confirm: int = 0, widths: tuple[float, ...] = (),
) -> Draft:  # fmt: skip
    return Draft(
        hypothesis=hypothesis, proposals=(), arms=arms, base=base.config_id, seeds=seeds,
        confirm=confirm, promote=(), metric=drafting.METRIC, smallest_effect=0.0,
        predicted=(0.0, 0.0, 0.0), flops=flops, data_id=drafting.data_id(base),
        code=fingerprint.training_code(), evaluator=fingerprint.evaluator(), by=desk.seat,
        widths=widths,
    )  # fmt: skip
