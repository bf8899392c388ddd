# SPDX-License-Identifier: Apache-2.0
"""Verdicts: calibrated, honest about one seed, and the same for the same losses."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxlm.core.errors import ConfigError
from jaxlm.research.stats.noise import Noise
from jaxlm.research.stats.verdict import Losses, Rules, judge


def draw(rng: np.random.Generator, effects: list[float], seeds: int, sd: float = 1.0) -> Losses:
    common = rng.normal(5, 1, seeds)
    arms = {"base": 0.0, **{f"arm{i}": e for i, e in enumerate(effects)}}
    return {a: dict(enumerate(common + e + rng.normal(0, sd, seeds))) for a, e in arms.items()}


@pytest.mark.parametrize("test", ["t", "sequence", "sign_flip"])
def test_no_difference_is_kept_in_at_most_alpha(test: str) -> None:
    rng, rules = np.random.default_rng(0), Rules(test=test)  # type: ignore[arg-type]
    found = [judge(draw(rng, [0.0], 7), "base", rules)["arm0"].decision for _ in range(1000)]
    assert np.mean([d == "keep" for d in found]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)
    assert np.mean([d != "inconclusive" for d in found]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_many_arms_keep_few_false_ones() -> None:
    rng, rules = np.random.default_rng(1), Rules()
    rates = []
    for _ in range(150):
        found = judge(draw(rng, [0.0] * 16 + [-6.0] * 4, 5), "base", rules)
        kept = [int(a.removeprefix("arm")) for a, v in found.items() if v.decision == "keep"]
        rates.append(sum(i < 16 for i in kept) / max(1, len(kept)))
    assert np.mean(rates) <= 0.05 + 2 * np.std(rates) / math.sqrt(len(rates))


def test_one_of_twenty_has_to_be_clearer_than_one_alone() -> None:
    d = [-1.0, -2.0, -0.5, -1.5]
    losses = {"base": dict.fromkeys(range(4), 5.0), "good": {i: 5 + x for i, x in enumerate(d)}}
    alone = judge(losses, "base", Rules())["good"]
    idle = {f"idle{k}": {i: 5.0 + (-1) ** i for i in range(4)} for k in range(19)}
    verdicts = judge(losses | idle, "base", Rules())
    among = verdicts["good"]
    assert "the interval includes 0:" in verdicts["idle0"].reason
    assert alone.decision == "keep" and alone.p_value == among.p_value
    assert among.decision == "inconclusive" and "no discovery" in among.reason


def test_intervals_are_scipys_and_cover() -> None:
    rng = np.random.default_rng(2)
    losses = draw(rng, [-1.0], 6)
    d = np.array([losses["arm0"][s] - losses["base"][s] for s in range(6)])
    verdict = judge(losses, "base", Rules())["arm0"]
    want = scipy.stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert (verdict.low, verdict.high) == pytest.approx(tuple(want))
    assert verdict.p_value == pytest.approx(
        scipy.stats.ttest_1samp(d, 0, alternative="less").pvalue
    )
    hits = [
        v.low <= -1 <= v.high
        for v in (judge(draw(rng, [-1.0], 3), "base", Rules())["arm0"] for _ in range(2000))
    ]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_clear_effects_are_kept_and_discarded_by_the_smallest_worth_keeping() -> None:
    losses = draw(np.random.default_rng(3), [-2.0, 2.0, -0.2], 8, sd=0.05)
    found = judge(losses, "base", Rules(smallest_effect=0.5))
    assert [found[f"arm{i}"].decision for i in range(3)] == ["keep", "discard", "discard"]
    assert "base" not in found


def test_one_seed_is_inconclusive_and_says_why() -> None:
    verdict = judge({"base": {1: 2.0}, "a": {1: 1.0}}, "base", Rules())["a"]
    assert verdict.decision == "inconclusive" and verdict.effect == -1.0 and verdict.n == 1
    assert math.isnan(verdict.noise_floor) and verdict.high == math.inf
    assert "neither the noise nor the sign" in verdict.reason


def test_one_seed_and_pooled_noise_can_conclude() -> None:
    verdict = judge({"base": {1: 2.0}, "a": {1: 1.0}}, "base", Rules(), Noise(0.1, 20))["a"]
    half = scipy.stats.t.ppf(0.975, 20) * 0.1
    assert verdict.decision == "keep"
    assert (verdict.low, verdict.high) == pytest.approx((-1 - half, -1 + half))


def test_runs_that_did_not_complete_have_no_metric() -> None:
    losses: Losses = {"base": {1: 2.0, 2: 2.1}, "a": {1: None, 2: 2.0}, "b": {1: None}}
    found = judge(losses, "base", Rules())
    assert (found["a"].n, found["b"].n) == (1, 0)
    assert math.isnan(found["b"].effect) and "no seed completed" in found["b"].reason


def test_an_arm_that_fails_on_a_seed_is_not_kept_on_the_others() -> None:
    base = dict.fromkeys(range(4), 5.0)
    arm: dict[int, float | None] = {0: 4.0, 1: 4.01, 2: 3.99, 3: None}
    verdict = judge({"base": base, "a": arm}, "base", Rules())["a"]
    assert verdict.decision == "inconclusive" and "1 of 4 seeds did not complete" in verdict.reason
    assert judge({"base": base | {3: None}, "a": arm}, "base", Rules())["a"].decision == "keep"


def test_no_worse_than_a_margin_is_the_one_sided_test_of_scipy() -> None:
    rng, rules = np.random.default_rng(5), Rules(margin=0.4)
    kept = []
    for effect in (0.4, 0.0):
        found = [judge(draw(rng, [effect], 6, sd=0.2), "base", rules)["arm0"] for _ in range(1000)]
        kept.append(np.mean([v.decision == "keep" for v in found]))
    assert kept[0] <= 0.025 + 2 * math.sqrt(0.025 / 1000) and kept[1] > 0.5
    losses = draw(rng, [0.1], 6, sd=0.2)
    d = np.array([losses["arm0"][s] - losses["base"][s] for s in range(6)])
    verdict = judge(losses, "base", rules)["arm0"]
    assert verdict.p_value == pytest.approx(
        scipy.stats.ttest_1samp(d, 0.4, alternative="less").pvalue
    )
    with pytest.raises(ConfigError, match="margin"):
        Rules(margin=0.0)


def test_few_seeds_cannot_pass_the_sign_flip_test() -> None:
    losses = draw(np.random.default_rng(4), [-5.0], 5, sd=0.01)
    verdict = judge(losses, "base", Rules(test="sign_flip"))["arm0"]
    assert verdict.decision == "inconclusive" and "5 seeds" in verdict.reason


def test_bad_rules_and_a_wrong_baseline_are_one_line() -> None:
    with pytest.raises(ConfigError, match="'basse' is not an arm; did you mean 'base'"):
        judge({"base": {1: 1.0}}, "basse", Rules())
    for bad in ({"alpha": 0.0}, {"smallest_effect": -1.0}, {"test": "z"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Rules(**bad)  # type: ignore[arg-type]
