# SPDX-License-Identifier: Apache-2.0
"""Trained tokenizers, and configs of corpora on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlm.data.config import CorpusConfig, DataConfig, TokenizerConfig
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from tests.jaxlm.data.corpora import VOCAB_SIZE, make_texts, write_jsonl


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    config = TokenizerConfig(vocab_size=VOCAB_SIZE, kind=request.param)
    return Tokenizer(train_tokenizer(make_texts(0, 200), config), request.param)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., DataConfig]:
    """make_config(seq_len=.., ..): corpora "a" and "b" of 150 and 60 documents under tmp_path."""
    for name, seed, count in (("a", 1, 150), ("b", 2, 60)):
        write_jsonl(tmp_path / name / "docs.jsonl", make_texts(seed, count))

    def make(**changes: object) -> DataConfig:
        corpora = tuple(CorpusConfig(name=n, source=str(tmp_path / n)) for n in ("a", "b"))
        defaults = {
            "corpora": corpora,
            "tokenizer": TokenizerConfig(vocab_size=VOCAB_SIZE),
            "seq_len": 37,  # no power of two, no multiple of eight
            "batch_size": 8,
            "valid_frac": 0.2,
            "cache_dir": str(tmp_path / "cache"),
        }
        return DataConfig(**{**defaults, **changes})

    return make
