# SPDX-License-Identifier: Apache-2.0
"""Simulated worlds have the statistics they state, and reproduce the public log."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from jaxlm.research.policies.base import BASELINE, Knowledge, Purse, Trial, drive
from jaxlm.research.policies.greedy import greedy
from jaxlm.research.simulate import WORLDS, SimulatedWorld, WorldSpec, marginal

LOG_KEEPS, LOG_GAIN = 22, 0.0282  # of 125 experiments (mar8)


def test_greedy_keeps_and_gains_what_it_did_in_the_public_log() -> None:
    keeps, claims = [], []
    for k in range(40):
        world = SimulatedWorld(WORLDS["calibrated"], k)
        outcome = drive(greedy(world.ideas, 126, 0, Knowledge()), world.run, Purse(126))
        keeps.append(len(outcome.kept))
        claims.append(outcome.claimed_gain)
    assert np.mean(keeps) == pytest.approx(LOG_KEEPS, abs=np.std(keeps))
    assert np.mean(claims) == pytest.approx(LOG_GAIN, abs=np.std(claims))


@pytest.mark.skipif(
    "AUTORESEARCH_LOG" not in os.environ, reason="needs AUTORESEARCH_LOG=mar8_results.tsv"
)
def test_the_log_is_as_stated() -> None:
    with open(Path(os.environ["AUTORESEARCH_LOG"])) as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    kept = [float(r["val_bpb"]) for r in rows if r["status"] == "keep"]
    assert (len(kept) - 1, len(rows) - 1) == (LOG_KEEPS, 125)
    assert kept[0] - kept[-1] == pytest.approx(LOG_GAIN, abs=1e-4)


def test_a_run_repeated_is_the_same_run_whatever_came_before() -> None:
    trial = Trial(frozenset({"idea003", "idea007"}), 9, 0.3)
    world, other = (SimulatedWorld(WORLDS["interactions"], 1) for _ in range(2))
    other.run([Trial(BASELINE, s) for s in range(5)])
    assert world.run([trial]) == other.run([trial])
    assert world.run([trial]) != SimulatedWorld(WORLDS["interactions"], 2).run([trial])


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_noise_has_its_size_and_its_pairing(rho: float) -> None:
    world = SimulatedWorld(WorldSpec(sigma=2e-3, rho=rho, p_crash=0), 3)
    arm = frozenset({"idea001"})
    a, b = (np.array(world.run([Trial(x, s) for s in range(3000)]), float) for x in (arm, BASELINE))
    assert a.std() == pytest.approx(2e-3, rel=0.05)
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(rho, abs=0.05)
    assert a.mean() - b.mean() == pytest.approx(world.truth(arm), abs=4 * 2e-3 / np.sqrt(1500))


def test_early_runs_are_noisier_and_off_by_the_stated_amount() -> None:
    world = SimulatedWorld(WorldSpec(sigma=1e-3, early_sd=2e-3, p_crash=0), 4)
    early = np.array(world.run([Trial(BASELINE, s, 0.3) for s in range(2000)]), float)
    late = np.array(world.run([Trial(BASELINE, s) for s in range(2000)]), float)
    assert early.std() == pytest.approx(1.5e-3, rel=0.06)
    assert np.corrcoef(early, late)[0, 1] == pytest.approx(0.5, abs=0.07)
    shifts = []
    for idea in world.ideas[:200]:
        pairs = [Trial(arm, s, 0.3) for s in range(20) for arm in (frozenset({idea}), BASELINE)]
        losses = np.array(world.run(pairs), float)
        shifts.append((losses[::2] - losses[1::2]).mean() - world.truth(frozenset({idea})))
    noise = 2 * 1.5e-3**2 / 20
    assert np.sqrt(np.var(shifts) - noise) == pytest.approx(2e-3, rel=0.15)


def test_interactions_spread_effects_by_the_stated_share_in_an_arm_of_ten() -> None:
    world = SimulatedWorld(WORLDS["interactions"], 5)
    working = [i for i in world.ideas if abs(world.truth(frozenset({i}))) > 3e-4]
    rng, ratios = np.random.default_rng(0), []
    for _ in range(1500):
        arm = frozenset(rng.choice(working, 10, replace=False).tolist())
        idea = min(arm)
        alone = world.truth(frozenset({idea}))
        others = np.mean([abs(world.truth(frozenset({i}))) for i in arm - {idea}])
        ratios.append((marginal(world, idea, arm) - alone) / np.sqrt(abs(alone) * others * 0.9))
    assert np.std(ratios) == pytest.approx(0.3, rel=0.15)


def test_scale_turns_the_stated_share_of_signs() -> None:
    world = SimulatedWorld(WorldSpec(flips=0.25, transfer=0.8, num_ideas=4000), 6)
    working = world.effects[0] != 0
    ratio = world.effects[1][working] / world.effects[0][working]
    assert set(np.round(ratio, 9)) == {-0.8, 0.8}
    assert np.mean(ratio < 0) == pytest.approx(0.25, abs=0.03)
