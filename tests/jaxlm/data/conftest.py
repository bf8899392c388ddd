# SPDX-License-Identifier: Apache-2.0
"""A small corpus with long, short and empty documents, and tokenizers trained on it."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlm.data.config import CorpusConfig, DataConfig, TokenizerConfig
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.tokenizer_training import train_tokenizer

VOCAB_SIZE = 320


def make_texts(seed: int, count: int) -> list[str]:
    """Different texts of 0 to 3000 characters, most of them short, some not ASCII."""
    rng = random.Random(seed)
    words = ["def", "return", "self.x", "é", "naïve", "\u2581", "<doc>", "\t", "\n", "\r\n", "  ", "日本"]
    words += ["".join(rng.choices("abcdefgh", k=rng.randint(1, 7))) for _ in range(60)]
    sizes = [0, *(rng.choice([1, 5, 20, 80, 400]) for _ in range(count - 1))]
    return ["".join(rng.choice(words) + " " for _ in range(n)) for n in sizes]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


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
