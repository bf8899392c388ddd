# SPDX-License-Identifier: Apache-2.0
"""gin text to frozen dataclasses: what is accepted, and one clear line for what is not."""

import pytest

from jaxlm.cli.gin_edge import load
from jaxlm.core.errors import ConfigError

BASE = """
width = 64
ModelConfig.vocab_size = 512
ModelConfig.num_layers = 2
ModelConfig.embed_dim = %width
ModelConfig.num_heads = 4
ModelConfig.ffn_dim = 256
TokenizerConfig.vocab_size = 512
DataConfig.seq_len = 64
DataConfig.batch_size = 8
OptimConfig.peak_lr = 1e-3
TrainConfig.num_steps = 10
"""


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base.gin").write_text(BASE)
    return str(tmp_path / "base.gin")


def test_macros_includes_scopes_and_overrides_apply_in_order(base, tmp_path):
    (tmp_path / "top.gin").write_text(
        'include "base.gin"\n'
        "DataConfig.corpora = [@a/CorpusConfig(), @b/CorpusConfig()]\n"
        'a/CorpusConfig.name = "a"\n'
        'b/CorpusConfig.name = "b"\n'
        'CorpusConfig.source = "stdlib"\n'
        "b/CorpusConfig.weight = 3\n"
    )
    config = load([str(tmp_path / "top.gin")], ["width = 32", "OptimConfig.peak_lr = 2"])
    assert config.model.embed_dim == 32
    assert config.optim.peak_lr == 2.0 and isinstance(config.optim.peak_lr, float)
    assert [(c.name, c.source, c.weight) for c in config.data.corpora] == [
        ("a", "stdlib", 1.0),
        ("b", "stdlib", 3.0),
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("OptimConfig.peak_lrr = 1", "unknown key OptimConfig.peak_lrr; did you mean 'peak_lr'?"),
        ("OptmConfig.peak_lr = 1", "unknown config 'OptmConfig'; did you mean 'OptimConfig'?"),
        ("OptimConfig.peak_lr = 'x'", "OptimConfig.peak_lr must be of type float, got 'x'"),
        ("OptimConfig.peak_lr = True", "OptimConfig.peak_lr must be of type float, got True"),
        ("TrainConfig.num_steps = 1e4", "TrainConfig.num_steps must be of type int, got 10000.0"),
        ("OptimConfig.peak_lr = 1e999", "OptimConfig.peak_lr must be a finite number, got inf"),
        ("OptimConfig.peak_lr = -1", "OptimConfig.peak_lr must be > 0, got -1.0"),
        ("OptimConfig.name = 'adam'", "did you mean 'adamw'?"),
        ("ModelConfig.num_heads = 5", "embed_dim must be a multiple of num_heads=5"),
        ("OptimConfig.warmup_steps = 10", "must be below TrainConfig.num_steps=10, got 10"),
        ("TokenizerConfig.vocab_size = 600", "at most ModelConfig.vocab_size=512"),
        ("TrainConfig.num_micro_batches = 3", "a multiple of TrainConfig.num_micro_batches=3"),
        ("ModelConfig.embed_dim = %wdth", "undefined macro %wdth; did you mean 'width'?"),
        ("x/CorpusConfig.name = 'x'", "nothing refers to @x/CorpusConfig()"),
        ("ModelConfig.remat = full", "strings need quotes"),
        ("OptimConfig.name = '\udcff'", "not gin syntax: 'utf-8' codec can't encode"),
        ("import os", "only bindings and include are allowed"),
        ('include "nowhere.gin"', "cannot read config"),
        ("gibberish", "not gin syntax"),
    ],
)
def test_a_mistake_is_one_line_that_names_field_value_and_what_is_allowed(base, override, message):
    with pytest.raises(ConfigError) as error:
        load([base], [override])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_fields_are_named(tmp_path):
    (tmp_path / "x.gin").write_text(BASE.replace("OptimConfig.peak_lr = 1e-3", ""))
    with pytest.raises(ConfigError, match="OptimConfig.peak_lr must be set"):
        load([str(tmp_path / "x.gin")], [])


def test_a_file_that_sets_a_key_twice_or_includes_itself_is_refused(base, tmp_path):
    (tmp_path / "twice.gin").write_text(BASE + "OptimConfig.peak_lr = 1\n")
    with pytest.raises(ConfigError, match="again; first set at .*twice.gin:11"):
        load([str(tmp_path / "twice.gin")], [])
    (tmp_path / "loop.gin").write_text('include "loop.gin"\n')
    with pytest.raises(ConfigError, match="includes itself"):
        load([str(tmp_path / "loop.gin")], [])


def test_loading_leaves_no_state_behind(base):
    first = load([base], ["OptimConfig.peak_lr = 5.0"])
    assert load([base], []).optim.peak_lr == 1e-3
    assert first.optim.peak_lr == 5.0 and hash(first) != hash(load([base], []))
