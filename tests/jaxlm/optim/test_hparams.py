# SPDX-License-Identifier: Apache-2.0
"""The run-time scalars: which there are, and what they are made of."""

import numpy as np

from jaxlm.optim.config import GroupConfig, OptimConfig
from jaxlm.optim.hparams import hparams


def test_scalars_are_f32_and_their_names_do_not_depend_on_their_values():
    some = hparams(OptimConfig(peak_lr=0.1), 10)
    other = hparams(
        OptimConfig(peak_lr=1.0, name="muon", clip_norm=None, warmup_steps=3, schedule="wsd"), 20
    )
    assert some.keys() == other.keys()
    assert all(type(value) is np.float32 for value in (some | other).values())


def test_values_are_those_of_the_config():
    groups = (
        GroupConfig(pattern="a"),
        GroupConfig(pattern="b", lr_scale=0.5, weight_decay_scale=2),
    )
    h = hparams(OptimConfig(peak_lr=0.25, z_loss=0.5, clip_norm=None, groups=groups), 10)
    assert (h["peak_lr"], h["z_loss"], h["num_steps"]) == (0.25, 0.5, 10)
    assert h["clip_norm"] == np.inf
    assert (h["groups/0/lr_scale"], h["groups/1/lr_scale"]) == (1, 0.5)
    assert h["groups/1/weight_decay_scale"] == 2
