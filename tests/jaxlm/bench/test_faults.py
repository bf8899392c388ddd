# SPDX-License-Identifier: Apache-2.0
"""The suite plants what it says, and neutral plants leave the product's training as it is."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxlm.bench.diagnose import Judged, judge, score
from jaxlm.bench.faults import batches, world
from jaxlm.bench.faults.kinds import FAULTS, HEALTHY, plant_of
from jaxlm.bench.faults.plant import Plant, Scene
from jaxlm.bench.faults.step import build_faulty_trainer, neutral, scalars_of
from jaxlm.bench.faults.suite import Case, all_cases, path_of, read_trained, train_missing
from jaxlm.bench.faults.world import base_config, changed
from jaxlm.research.diagnose.causes import CAUSES
from jaxlm.train.setup import build_trainer, on_mesh


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    small = {"model.embed_dim": 16, "model.ffn_dim": 16, "data.batch_size": 8, "data.seq_len": 16}
    return changed(base_config(tmp_path_factory.mktemp("world"), 0), small)


def batch_of(step, rows=8, seq_len=16):
    tokens = np.random.default_rng(step).integers(3, 500, (rows, seq_len + 1)).astype(np.int32)
    ones = np.ones((rows, seq_len), np.int32)
    positions = np.tile(np.arange(seq_len, dtype=np.int32), (rows, 1))
    return {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": ones,
        "positions": positions, "weights": ones.astype(np.float32),
    }  # fmt: skip


@pytest.mark.slow
def test_neutral_knobs_train_as_the_product_does(config):
    bytes_per_token = np.ones(512, np.int32)
    losses = []
    for build in (build_trainer, build_faulty_trainer):
        trainer = build(config, bytes_per_token)
        with on_mesh(trainer.mesh):
            state = trainer.init(jax.random.key(0))
            for step in range(3):
                state, metrics = trainer.step(state, batch_of(step))
        losses.append(float(metrics["train/loss_nats"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_knobs_do_what_they_are_called(config):
    trainer = build_faulty_trainer(config, np.ones(512, np.int32))
    knobs = {"fault/grad_scale@layer_1": 100.0, "fault/update_scale@layer_0": 0.0}
    found = {}
    for name, setting in (("neutral", neutral()), ("faulty", {**neutral(), **knobs})):
        with on_mesh(trainer.mesh):
            state = trainer.init(jax.random.key(0))
            scalars = jax.device_put(scalars_of(config, setting))
            _, metrics = trainer.step(state._replace(hparams=scalars), batch_of(0))
        found[name] = dict(zip(trainer.probe.names, np.asarray(metrics["probes"]), strict=True))
    ratio = lambda name: found["faulty"][name] / found["neutral"][name]
    assert ratio("grad/norm_l2@layer_1") == pytest.approx(100, rel=1e-3)
    assert ratio("grad/norm_l2@layer_0") == pytest.approx(1, rel=1e-3)
    assert found["faulty"]["update/ratio_rms@layer_0"] == 0


def test_a_planted_run_is_trained_kept_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "NUM_STEPS", 40)
    case = Case("lr_too_high", 2, 0)
    train_missing(tmp_path, [case], lambda *_: None)
    (trained,) = read_trained(tmp_path, [case])
    judged = judge(trained)
    assert judged.roots[:1] == (judged.cause,) == ("lr_too_high",)
    assert judged.num_citations > 0 and judged.num_wrong == 0


def scene(config):
    return Scene(config, None, [batch_of(99)], np.random.default_rng(0))


def test_changed_batches_keep_their_form(config):
    changes = {
        "garbage": batches.garbage(lambda step: True), "leaked": batches.leaked(0.5),
        "shifted": batches.shifted(1), "unmasked": batches.unmasked(0.4),
        "padding": batches.trained_on_padding(0.5),
    }  # fmt: skip
    for name, change in changes.items():
        before = batch_of(3)
        after = change(scene(config), 1, before)
        assert {k: (v.dtype, v.shape) for k, v in after.items()} == {
            k: (v.dtype, v.shape) for k, v in before.items()
        }, name
        assert any((after[k] != before[k]).any() for k in before), name


def test_garbage_is_still_a_text_whose_targets_follow(config):
    after = batches.garbage(lambda step: True)(scene(config), 1, batch_of(3))
    np.testing.assert_array_equal(after["targets"][:, :-1], after["tokens"][:, 1:])


def test_every_cause_is_planted_and_no_two_cases_share_a_file(tmp_path):
    assert set(FAULTS) == set(CAUSES) and len(FAULTS) >= 20
    cases = all_cases()
    assert len(cases) == len(FAULTS) * 15 + 60
    assert len({path_of(case, tmp_path) for case in cases}) == len(cases)
    assert path_of(cases[7], tmp_path).name == path_of(cases[7], tmp_path / "elsewhere").name


def test_the_halves_are_balanced():
    for kind in (*FAULTS, *HEALTHY):
        halves = [Case(kind, 0, seed).is_tuning for seed in range(5)]
        assert sorted([sum(halves), 5 - sum(halves)]) == [2, 3]


def test_plants_depend_on_their_seed_alone():
    at = [plant_of("frozen_layer", 1, seed).knob(100) for seed in (0, 0, 1, 2, 3, 4)]
    assert at[0] == at[1]
    assert len({str(knobs) for knobs in at}) == 2  # either layer


def test_the_clock_tells_what_is_planted(config):
    slow = Plant(slower=lambda step: 3.0 if step >= 50 else 1.0, noise=0.0)
    clock = slow.clock(scene(config))
    times = np.diff([clock.read() for _ in range(100)])
    assert np.median(times[:45]) == pytest.approx(0.1, rel=0.05)
    assert np.median(times[55:]) == pytest.approx(0.3, rel=0.05)


def judged(kind, cause, *roots, wrong=0):
    return Judged(Case(kind, 0, 0), cause, roots, roots, 4, wrong)


def test_the_score_is_the_arithmetic_it_claims():
    runs = [
        judged("divergence", "divergence", "divergence"),
        judged("divergence", "divergence", "straggler", "divergence"),
        judged("straggler", "straggler"),
        judged("plain", None),
        judged("plain", None, "straggler", wrong=1),
    ]
    found = score(runs)
    assert found.recall == pytest.approx((1.0 + 0.0) / 2)
    assert found.precision == pytest.approx(2 / 4)
    assert found.first_cause == pytest.approx(1 / 3)
    assert found.false_alarms == pytest.approx(1 / 2)
    assert found.verified == pytest.approx(19 / 20)
    assert dataclasses.astuple(found)[-2:] == (3, 2)
