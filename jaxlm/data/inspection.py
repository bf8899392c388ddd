# SPDX-License-Identifier: Apache-2.0
"""Rows as a person reads them: each segment's place in its row, and its text."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxlm.data.packing import unpack
from jaxlm.data.prepared import PreparedData
from jaxlm.data.shards import ShardReader
from jaxlm.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Segment:
    """A document, or a piece of one, in a row."""

    row: int
    begin: int  # first position
    end: int  # one past the last position
    starts_document: bool
    ends_document: bool
    text: str  # that is predicted here


def inspect_rows(
    prepared: PreparedData, tokenizer: Tokenizer, corpus: str, split: str, rows: Sequence[int]
) -> list[Segment]:
    """The segments of some rows as they lie in the shards, row after row."""
    separator_id = prepared.row_format.separator_id
    records = ShardReader(prepared.corpus(corpus).split(split).shards).read(rows)
    segments = []
    for row, record in zip(rows, records, strict=True):
        one = {name: array[0] for name, array in unpack([record], prepared.row_format).items()}
        for number in range(1, int(one["segment_ids"].max()) + 1):
            positions = np.flatnonzero(one["segment_ids"] == number)
            begin, end = int(positions[0]), int(positions[-1]) + 1
            segments.append(
                Segment(
                    row=row,
                    begin=begin,
                    end=end,
                    starts_document=bool(one["tokens"][begin] == separator_id),
                    ends_document=bool(one["targets"][end - 1] == separator_id),
                    text=tokenizer.decode(one["targets"][begin:end].tolist()),
                )
            )
    return segments
