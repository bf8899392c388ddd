# SPDX-License-Identifier: Apache-2.0
"""Tokenised documents, packed once for a sequence length: the second layer of the cache."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.documents import ALMOST, SPLITS, read_documents
from jaxlm.data.packing import RowFormat, cut, pack
from jaxlm.data.shards import ShardWriter


def build_rows(
    folder: Path,
    documents: Path,
    stats: dict[str, Any],
    fmt: RowFormat,
    report: Callable[[float], None],
) -> dict[str, Any]:
    """Packs the folder `documents` into `folder`; returns `stats` with rows, padding and shards.

    `stats` is {split: {"documents", "bytes", "tokens"}}.
    """
    packed, done = {}, 0
    predictions = {split: stats[split]["tokens"] + stats[split]["documents"] for split in SPLITS}
    for split, num_predictions in predictions.items():
        num_rows = 0
        with ShardWriter(folder, split) as writer:
            for record in _records(documents, split, fmt):
                writer.write(record)
                num_rows += 1
                done += fmt.seq_len
                report(min(done / sum(predictions.values()), ALMOST))
        packed[split] = {
            **stats[split],
            "rows": num_rows,
            "padding": 1 - num_predictions / (num_rows * fmt.seq_len),
            "shards": writer.names,
        }
    report(1.0)
    return packed


def _records(documents: Path, split: str, fmt: RowFormat) -> Iterator[bytes]:
    pieces = _pieces(documents, split, fmt)
    while window := list(itertools.islice(pieces, _window_size(fmt.seq_len))):
        yield from pack(window, fmt)


def _pieces(documents: Path, split: str, fmt: RowFormat) -> Iterator[np.ndarray]:
    for tokens in read_documents(documents, split, fmt.vocab_size):
        yield from cut(tokens, fmt)


def _window_size(seq_len: int) -> int:
    """Pieces that are packed together: enough to fit well, and at most 256 MB in uint32."""
    return max(1024, min(1 << 16, (1 << 26) // seq_len))
