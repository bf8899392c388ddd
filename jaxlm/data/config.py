# SPDX-License-Identifier: Apache-2.0
"""What text, cut how, in what order.  Standard library only."""

import dataclasses
import math
from typing import Literal

from jaxlm.core.checks import require

MOST_POSITIONS = 1 << 24  # RoPE turns by positions in f32, which holds no larger ones exactly


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """One source of documents."""

    name: str  # letters, digits, "-" and "_": it names a folder and a metric
    source: str  # "stdlib", or a directory or glob of .txt, .jsonl(.gz|.zst), .parquet
    weight: float = 1.0  # share of the batches, relative to the other corpora
    text_field: str = "text"  # the field that holds the text in .jsonl and .parquet

    def __post_init__(self) -> None:
        ok = bool(self.name) and self.name.replace("-", "").replace("_", "").isalnum()
        require(ok, "CorpusConfig.name", self.name, "letters, digits, '-' and '_'")
        require(
            bool(self.source), "CorpusConfig.source", self.source, "'stdlib', a directory or a glob"
        )
        require(
            math.isfinite(self.weight) and self.weight >= 0,
            f"CorpusConfig.weight of {self.name!r}",
            self.weight,
            ">= 0",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A SentencePiece model: trained on the corpora, or read from `path`."""

    vocab_size: int
    kind: Literal["bpe", "unigram"] = "bpe"
    path: str | None = None  # a trained .model file; its vocabulary must have vocab_size pieces
    train_bytes: int = 20_000_000  # of text that the training sees, taken evenly from the corpora

    def __post_init__(self) -> None:
        # 256 byte pieces, <unk>, the document separator, padding and newline must fit
        require(self.vocab_size >= 300, "TokenizerConfig.vocab_size", self.vocab_size, ">= 300")
        require(self.train_bytes > 0, "TokenizerConfig.train_bytes", self.train_bytes, "> 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Corpora, tokenizer, packing and batches."""

    corpora: tuple[CorpusConfig, ...] = (CorpusConfig(name="stdlib", source="stdlib"),)
    tokenizer: TokenizerConfig
    seq_len: int  # T: positions per row
    batch_size: int  # B: rows per update, over all hosts
    # Steps at which the corpora's weights change: ((step, (weight of each corpus)), ...).
    # Empty: CorpusConfig.weight throughout.  Between two entries the earlier one holds.
    weight_schedule: tuple[tuple[int, tuple[float, ...]], ...] = ()
    valid_frac: float = 0.05  # share of the documents held out, chosen by hash of their content
    cache_dir: str = "data"  # where tokenizers and tokenised corpora are kept
    seed: int = 0  # of the order of the rows
    read_threads: int = 2  # background readers; the batches do not depend on it
    prefetch: int = 8  # batches read ahead

    def __post_init__(self) -> None:
        require(
            1 < self.seq_len <= MOST_POSITIONS, "DataConfig.seq_len", self.seq_len,
            f"between 2 and {MOST_POSITIONS:,}",
        )  # fmt: skip
        require(self.batch_size > 0, "DataConfig.batch_size", self.batch_size, "> 0")
        require(
            0 < self.valid_frac < 1, "DataConfig.valid_frac", self.valid_frac, "between 0 and 1"
        )
        require(self.read_threads >= 1, "DataConfig.read_threads", self.read_threads, ">= 1")
        require(self.prefetch >= 1, "DataConfig.prefetch", self.prefetch, ">= 1")
        require(self.seed >= 0, "DataConfig.seed", self.seed, ">= 0")
        names = [c.name for c in self.corpora]
        require(len(names) > 0, "DataConfig.corpora", names, "at least one corpus")
        require(
            len(set(names)) == len(names), "DataConfig.corpora", names, "corpora of different names"
        )
        require(
            sum(c.weight for c in self.corpora) > 0,
            "DataConfig.corpora",
            "weights that sum to 0",
            "of a positive total weight",
        )
        self._check_weight_schedule()

    def _check_weight_schedule(self) -> None:
        field, steps = "DataConfig.weight_schedule", [step for step, _ in self.weight_schedule]
        require(
            steps == sorted(set(steps)), field, steps, "in ascending order of step, each step once"
        )
        require(not steps or steps[0] == 0, field, steps, "started at step 0")
        for step, weights in self.weight_schedule:
            require(
                len(weights) == len(self.corpora),
                f"{field} at step {step}",
                weights,
                f"one weight for each of {len(self.corpora)} corpora",
            )
            ok = all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0
            require(ok, f"{field} at step {step}", weights, "weights >= 0 of a positive sum")
