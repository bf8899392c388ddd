# SPDX-License-Identifier: Apache-2.0
"""The little world of the planted runs: its text, its models and its healthy config."""

import dataclasses
import sysconfig
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.data.config import CorpusConfig, DataConfig, TokenizerConfig
from jaxlm.data.prepare import prepare
from jaxlm.model.config import ModelConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.train.config import TrainConfig

NUM_STEPS, WARMUP, BASE_LR = 150, 15, 1e-2
VOCAB = 512
PACKAGES = ("asyncio", "email")
MODELS: dict[str, dict[str, Any]] = {
    "base": {},
    "constant": {},  # the schedule's shape is part of the program
    "small": {"model.num_layers": 1, "model.embed_dim": 16, "model.ffn_dim": 32},
    "small_batch": {"data.batch_size": 3},
}


def base_config(folder: Path, seed: int) -> RunConfig:
    """A healthy run: two layers of width 32, 150 updates of 512 tokens."""
    corpora = tuple(CorpusConfig(name=n, source=str(folder / "text" / n)) for n in PACKAGES)
    return RunConfig(
        model=ModelConfig(
            vocab_size=VOCAB, num_layers=2, embed_dim=32, num_heads=2, ffn_dim=64,
            activation="gelu", attention_impl="reference", loss_impl="reference",
        ),
        data=DataConfig(
            corpora=corpora, tokenizer=TokenizerConfig(vocab_size=VOCAB), seq_len=64, batch_size=8, valid_frac=0.15,
            cache_dir=str(folder / "data"), seed=seed,
        ),
        optim=OptimConfig(peak_lr=BASE_LR, warmup_steps=WARMUP, schedule="cosine"),
        train=TrainConfig(
            num_steps=NUM_STEPS, seed=seed, eval_every=15, eval_batches=6, probe_every=5,
            checkpoint_every=10**6, sample_prompts=(),
        ),
    )  # fmt: skip


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The config with "section.field" replaced."""
    for name, value in changes.items():
        section, _, field = name.partition(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def with_corpus(config: RunConfig, name: str, folder: Path) -> RunConfig:
    """`base`, or "small_N": N short documents, with the tokenizer of the large text."""
    if name == "base":
        return config
    prepared = prepare(config.data)
    source = folder / "text" / name
    if not source.exists():
        _write_small(source, int(name.rpartition("_")[2]))
    tokenizer = TokenizerConfig(vocab_size=VOCAB, path=str(prepared.tokenizer_path))
    data = dataclasses.replace(
        config.data,
        corpora=(CorpusConfig(name="small", source=str(source)),),
        tokenizer=tokenizer,
        valid_frac=0.5,
    )
    return dataclasses.replace(config, data=data)


def write_texts(folder: Path) -> None:
    """Source of two packages of the running Python, once."""
    for name in PACKAGES:
        target = folder / "text" / name
        if not target.exists():
            target.mkdir(parents=True)
            for path in sorted(Path(sysconfig.get_paths()["stdlib"], name).glob("*.py")):
                text = path.read_text(encoding="utf-8")
                (target / f"{path.stem}.txt").write_text(text, encoding="utf-8")


def _write_small(folder: Path, count: int) -> None:
    text = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_text(encoding="utf-8")
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i}.txt").write_text(text[1000 * i : 1000 * i + 600], encoding="utf-8")
