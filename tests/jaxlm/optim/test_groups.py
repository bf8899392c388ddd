# SPDX-License-Identifier: Apache-2.0
"""Labels, matrix dimensions and groups of parameters."""

import jax
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Model
from jaxlm.optim.config import GroupConfig
from jaxlm.optim.groups import (
    NO_GROUP,
    dimension_numbers,
    group_indices,
    is_axes,
    label,
)

AXES = {
    "embed": {"table": ("vocab", "embed")},
    "layers": {
        "attention": {"wq": ("layers", "embed", "heads", "head_dim"), "sinks": ("layers", "heads")},
        "mlp": {"w_down": ("layers", "ffn", "embed")},
    },
}


@pytest.mark.parametrize(
    ("axes", "expected", "inputs", "outputs"),
    [
        (("vocab", "embed"), "embed", (0,), (1,)),
        (("embed", "vocab"), "embed", (0,), (1,)),
        (("layers", "embed", "heads", "head_dim"), "matrix", (1,), (2, 3)),
        (("layers", "heads", "head_dim", "embed"), "matrix", (1, 2), (3,)),
        (("embed", "ffn"), "matrix", (0,), (1,)),
        (("ffn", "layers", "embed"), "matrix", (0,), (2,)),
        (("layers", "norm"), "vector", (), ()),
        (("embed",), "vector", (), ()),
        ((), "vector", (), ()),
    ],
)
def test_axis_names_decide_label_and_matrix(axes, expected, inputs, outputs):
    assert label(axes) == expected
    assert dimension_numbers(axes) == (inputs, outputs)


def test_a_matrix_off_the_residual_stream_has_no_label():
    with pytest.raises(ValueError, match=r"no optimizer label .* \('heads', 'ffn'\)"):
        label(("heads", "ffn"))


def test_every_parameter_of_the_model_is_labelled_as_its_name_says():
    config = ModelConfig(
        vocab_size=8, num_layers=2, embed_dim=4, num_heads=2, ffn_dim=6,
        tied_embeddings=False, qk_norm=True, attention_sinks=True, activation="swiglu",
    )  # fmt: skip
    labels = jax.tree.map(label, Model(config).axes(), is_leaf=is_axes)
    for path, value in jax.tree.leaves_with_path(labels):
        name = path[-1].key
        expected = (
            "embed"
            if name == "table"
            else "matrix"
            if name[:2] in ("wq", "wk", "wv", "wo", "w_")
            else "vector"
        )
        assert value == expected, path
    assert {"embed", "matrix", "vector"} == set(jax.tree.leaves(labels))


def test_the_first_pattern_that_matches_the_whole_path_takes_the_parameter():
    groups = (GroupConfig(pattern="layers/.*/w_down"), GroupConfig(pattern="layers/.*"))
    indices = group_indices(AXES, groups)
    assert indices["embed"]["table"] == NO_GROUP
    assert indices["layers"]["mlp"]["w_down"] == 0
    assert indices["layers"]["attention"] == {"wq": 1, "sinks": 1}


@pytest.mark.parametrize("pattern", ["layers/attention/wqq", "wq", "embed"])
def test_a_pattern_without_a_parameter_is_refused_with_the_nearest_paths(pattern):
    near = "embed/table" if pattern == "embed" else "layers/attention/wq"
    with pytest.raises(ConfigError, match=rf"'{pattern}' must match .* nearest paths are .*{near}"):
        group_indices(AXES, (GroupConfig(pattern=pattern),))


def test_a_pattern_that_earlier_ones_leave_nothing_is_refused():
    groups = (GroupConfig(pattern="layers/.*"), GroupConfig(pattern="layers/mlp/.*"))
    with pytest.raises(ConfigError, match=r"'layers/mlp/\.\*' .* no earlier group has"):
        group_indices(AXES, groups)
