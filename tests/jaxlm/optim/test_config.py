# SPDX-License-Identifier: Apache-2.0
"""Settings that no optimizer can run with are refused with the field's name."""

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.optim.config import GroupConfig, OptimConfig


@pytest.mark.parametrize(
    "fields",
    [
        {"peak_lr": 0.0},
        {"muon_lr": -1.0},
        {"eps": 0.0},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"z_loss": -0.1},
        {"b1": 1.0},
        {"b2": -0.1},
        {"muon_momentum": 1.0},
        {"clip_norm": 0.0},
        {"final_lr_frac": 1.5},
        {"decay_frac": 0.0},
        {"muon_steps": 0},
    ],
)
def test_a_value_out_of_range_is_refused_by_name(fields):
    ((name, value),) = fields.items()
    with pytest.raises(ConfigError, match=rf"^OptimConfig\.{name} must be .*, got {value}$"):
        OptimConfig(**({"peak_lr": 1.0} | fields))


def test_schedule_free_neither_decays_the_rate_nor_divides_by_zero():
    with pytest.raises(ConfigError, match="schedule_free must be 'constant', got 'cosine'"):
        OptimConfig(peak_lr=1.0, name="schedule_free")
    with pytest.raises(ConfigError, match="b1 of schedule_free must be > 0"):
        OptimConfig(peak_lr=1.0, name="schedule_free", schedule="constant", b1=0.0)


def test_a_group_needs_a_regular_expression_and_scales_that_are_not_negative():
    with pytest.raises(ConfigError, match=r"regular expression, got '\(': .*"):
        GroupConfig(pattern="(")
    with pytest.raises(ConfigError, match=r"lr_scale of 'a' must be >= 0, got -1"):
        GroupConfig(pattern="a", lr_scale=-1)
