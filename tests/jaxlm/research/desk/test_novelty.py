# SPDX-License-Identifier: Apache-2.0
"""Repeats are known however they are written; new ideas are not mistaken for them."""

from pathlib import Path

import pytest

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.research.desk import fields, novelty
from tests.e2e.workshop import furnish
from tests.jaxlm.research.desk.workshop import read

TRIED: dict[str, dict[str, str]] = {
    "lr": {"OptimConfig.peak_lr": "2e-2"},
    "lr and b1": {"OptimConfig.peak_lr": "5e-3", "OptimConfig.b1": "0.8"},
    "muon": {"OptimConfig.name": "'muon'"},
    "lion": {"OptimConfig.name": "'lion'", "OptimConfig.peak_lr": "1e-3"},
    "wsd": {"OptimConfig.schedule": "'wsd'"},
    "no decay": {"OptimConfig.weight_decay": "0.0"},
    "qk": {"ModelConfig.qk_norm": "True"},
    "relu2": {"ModelConfig.activation": "'relu2'"},
    "one kv head": {"ModelConfig.num_kv_heads": "1"},
    "windows": {"ModelConfig.layer_pattern": "('local',)", "ModelConfig.window": "16"},
    "warmup": {"OptimConfig.warmup_steps": "2"},
    "no clip": {"OptimConfig.clip_norm": "None"},
    "cap": {"ModelConfig.logit_softcap": "30.0"},
    "z": {"OptimConfig.z_loss": "1e-4"},
}
REPEATS: list[tuple[str, dict[str, str]]] = [
    ("lr", {"OptimConfig.peak_lr": v})
    for v in ("0.02", "0.020", "2.0e-2", "0.0205", "1.95e-2", "200e-4", "20e-3", "0.0219")
] + [
    ("lr and b1", {"OptimConfig.b1": "0.8", "OptimConfig.peak_lr": "0.005"}),
    ("lr and b1", {"OptimConfig.b1": "0.80", "OptimConfig.peak_lr": "0.0051"}),
    ("lr and b1", {"OptimConfig.b1": ".8", "OptimConfig.peak_lr": "5e-3", "OptimConfig.muon_lr": "0.5"}),
    ("muon", {"OptimConfig.name": '"muon"'}),
    ("muon", {"OptimConfig.name": "'muon'", "OptimConfig.muon_lr": "0.02"}),
    ("muon", {"OptimConfig.name": "'muon'", "OptimConfig.muon_steps": "5"}),
    ("muon", {"OptimConfig.name": "'muon'", "OptimConfig.muon_lr": "0.021"}),
    ("muon", {"OptimConfig.name": "'muon'", "OptimConfig.decay_frac": "0.4"}),
    ("lion", {"OptimConfig.peak_lr": "0.001", "OptimConfig.name": "'lion'"}),
    ("lion", {"OptimConfig.peak_lr": "0.001", "OptimConfig.name": "'lion'", "OptimConfig.eps": "1e-3"}),
    ("lion", {"OptimConfig.peak_lr": "0.00104", "OptimConfig.name": "'lion'"}),
    ("wsd", {"OptimConfig.schedule": '"wsd"'}),
    ("wsd", {"OptimConfig.schedule": "'wsd'", "OptimConfig.decay_frac": "0.2"}),
    ("wsd", {"OptimConfig.schedule": "'wsd'", "OptimConfig.decay_frac": "0.21"}),
    ("no decay", {"OptimConfig.weight_decay": "0"}),
    ("no decay", {"OptimConfig.weight_decay": "-0.0"}),
    ("no decay", {"OptimConfig.weight_decay": "0.", "OptimConfig.b1": "0.9"}),
    ("qk", {"ModelConfig.qk_norm": "True", "ModelConfig.norm_eps": "1e-6"}),
    ("qk", {"ModelConfig.qk_norm": "True", "ModelConfig.rope_factor": "2.0"}),
    ("relu2", {"ModelConfig.activation": '"relu2"'}),
    ("relu2", {"ModelConfig.activation": "'relu2'", "ModelConfig.ffn_dim": "16"}),
    ("one kv head", {"ModelConfig.num_kv_heads": "1", "ModelConfig.head_dim": "8"}),
    ("one kv head", {"ModelConfig.num_kv_heads": "1", "OptimConfig.muon_lr": "0.1"}),
    ("windows", {"ModelConfig.window": "16", "ModelConfig.layer_pattern": "['local']"}),
    ("windows", {"ModelConfig.window": "17", "ModelConfig.layer_pattern": "('local',)"}),
    ("warmup", {"OptimConfig.warmup_steps": "2", "OptimConfig.final_lr_frac": "0.0"}),
    ("warmup", {"OptimConfig.warmup_steps": "2", "ModelConfig.rope_original_len": "64"}),
    ("no clip", {"OptimConfig.clip_norm": "None", "OptimConfig.b2": "0.95"}),
    ("no clip", {"OptimConfig.clip_norm": "None", "OptimConfig.muon_momentum": "0.5"}),
    ("cap", {"ModelConfig.logit_softcap": "30"}),
    ("z", {"OptimConfig.z_loss": "0.0001"}),
    ("z", {"OptimConfig.z_loss": "1.05e-4"}),
]  # fmt: skip
NEW: list[dict[str, str]] = [
    *({"OptimConfig.peak_lr": v} for v in ("1.4e-2", "3e-2", "4e-2", "5e-3", "2e-3", "7e-3")),
    {"OptimConfig.peak_lr": "5e-3", "OptimConfig.b1": "0.5"},
    {"OptimConfig.peak_lr": "2e-2", "OptimConfig.b1": "0.8"},
    {"OptimConfig.b1": "0.8"},
    {"OptimConfig.name": "'muon'", "OptimConfig.muon_lr": "0.05"},
    {"OptimConfig.name": "'muon'", "OptimConfig.peak_lr": "2e-2"},
    {"OptimConfig.name": "'muon'", "OptimConfig.muon_steps": "3"},
    {"OptimConfig.name": "'lion'"},
    {"OptimConfig.name": "'lion'", "OptimConfig.peak_lr": "3e-3"},
    {"OptimConfig.name": "'adafactor'"},
    {"OptimConfig.schedule": "'linear'"},
    {"OptimConfig.schedule": "'constant'"},
    {"OptimConfig.schedule": "'wsd'", "OptimConfig.decay_frac": "0.5"},
    {"OptimConfig.schedule": "'wsd'", "OptimConfig.final_lr_frac": "0.1"},
    {"OptimConfig.weight_decay": "0.3"},
    {"OptimConfig.weight_decay": "0.01"},
    {"OptimConfig.final_lr_frac": "0.1"},
    {"OptimConfig.b2": "0.99"},
    {"OptimConfig.b2": "0.8"},
    {"OptimConfig.eps": "1e-5"},
    {"OptimConfig.clip_norm": "0.3"},
    {"OptimConfig.warmup_steps": "1"},
    {"OptimConfig.warmup_steps": "3"},
    {"OptimConfig.z_loss": "1e-3"},
    {"ModelConfig.qk_norm": "True", "OptimConfig.peak_lr": "2e-2"},
    {"ModelConfig.activation": "'gelu'"},
    {"ModelConfig.activation": "'geglu'"},
    {"ModelConfig.num_layers": "2"},
    {"ModelConfig.tied_embeddings": "False"},
    {"ModelConfig.attention_sinks": "True"},
    {"ModelConfig.logit_softcap": "15.0"},
    {"ModelConfig.attention_softcap": "30.0"},
    {"ModelConfig.rope_theta": "1000.0"},
    {"ModelConfig.layer_pattern": "('local',)", "ModelConfig.window": "8"},
    {"DataConfig.batch_size": "4", "TrainConfig.num_steps": "8"},
]


def test_forty_repeats_are_found_and_forty_new_ideas_are_not(tmp_path: Path) -> None:
    furnish(tmp_path)
    base = configured({})
    tried = [
        (name, novelty.difference(base, configured(changes))) for name, changes in TRIED.items()
    ]
    assert len(REPEATS) == len(NEW) == 40
    found = [novelty.earlier(novelty.difference(base, configured(c)), tried) for _, c in REPEATS]
    right = sum(name == want for name, (want, _) in zip(found, REPEATS, strict=True))
    false = [c for c in NEW if novelty.earlier(novelty.difference(base, configured(c)), tried)]
    assert right >= 38, [r for r, name in zip(REPEATS, found, strict=True) if name != r[0]]
    assert len(false) <= 2, false


def configured(changes: dict[str, str]) -> RunConfig:
    return read(["base.gin"], fields.statements(changes) if changes else [])


def test_every_field_that_is_not_read_names_a_field_of_the_config(tmp_path: Path) -> None:
    furnish(tmp_path)
    known = novelty._facts(configured({})) | dict.fromkeys(novelty._READ, 0)
    assert set(novelty._SAME) <= set(known)
    for name in novelty._READ:
        section, field = name.split(".")
        assert hasattr(getattr(configured({}), section), field)


@pytest.mark.parametrize(
    "text", ["1; import os", "1\n2", "__import__('os')", "@x()", "%x", "", "x" * 200, "x", "2*1e-3"]
)
def test_a_change_is_one_literal(text: str) -> None:
    with pytest.raises(ConfigError, match="is no single value") as caught:
        fields.statements({"OptimConfig.peak_lr": text})
    assert len(str(caught.value).splitlines()) == 1
