# SPDX-License-Identifier: Apache-2.0
"""What preparing leaves: where the rows are, how many, and what they were made from."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxlm.data.packing import RowFormat


@dataclasses.dataclass(frozen=True)
class PreparedSplit:
    """The training or the validation rows of one corpus."""

    documents: int
    bytes: int  # of text, in UTF-8
    tokens: int  # of text; each document is one more prediction, its end
    rows: int
    padding: float  # share of the rows' positions that predict nothing
    shards: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class PreparedCorpus:
    """One corpus, tokenised and packed."""

    name: str
    id: str  # sha256 of the sources' content and all settings that the rows depend on
    folder: Path  # of the rows; their manifest is here, the documents' manifest beside it
    train: PreparedSplit
    valid: PreparedSplit
    # bits per byte on the validation text, {"gzip": .., "xz": ..} at level 9; {} if it is long
    baselines: dict[str, float]

    def split(self, name: str) -> PreparedSplit:
        """By the name "train" or "valid"."""
        return {"train": self.train, "valid": self.valid}[name]


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """All corpora of a DataConfig, ready to be read."""

    tokenizer_path: Path
    tokenizer_sha256: str
    row_format: RowFormat
    corpora: tuple[PreparedCorpus, ...]  # in the order of DataConfig.corpora
    data_id: str  # sha256 of everything that batch(step) depends on
    notices: tuple[str, ...]  # lines for the user: what changed since the last time

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """Bits per byte of gzip and xz on each corpus's validation text."""
        return {corpus.name: corpus.baselines for corpus in self.corpora}

    def corpus(self, name: str) -> PreparedCorpus:
        """By name; KeyError where there is none."""
        return {corpus.name: corpus for corpus in self.corpora}[name]

    def describe(self) -> list[dict[str, Any]]:
        """One row of a table for each corpus and split: column name to value."""
        return [_table_row(c, split) for c in self.corpora for split in ("train", "valid")]


def _table_row(corpus: PreparedCorpus, name: str) -> dict[str, Any]:
    split = corpus.split(name)
    return {
        "corpus": corpus.name,
        "split": name,
        "documents": split.documents,
        "bytes": split.bytes,
        "tokens": split.tokens,
        "bytes_per_token": split.bytes / max(split.tokens, 1),
        "rows": split.rows,
        "padding": split.padding,
    }
