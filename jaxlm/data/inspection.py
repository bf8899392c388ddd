# SPDX-License-Identifier: Apache-2.0
"""A batch as a person reads it: each segment's place in its row, and its text.

Legend: T positions
"""

import dataclasses

import numpy as np

from jaxlm.data.packing import Batch
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


def segments_of(batch: Batch, tokenizer: Tokenizer) -> list[Segment]:
    """The segments of all rows of a batch, row after row."""
    found = []
    for row, ids_T in enumerate(batch["segment_ids"]):
        for segment in range(1, int(ids_T.max()) + 1):
            positions = np.flatnonzero(ids_T == segment)
            begin, end = int(positions[0]), int(positions[-1]) + 1
            targets = batch["targets"][row, begin:end].tolist()
            starts = batch["tokens"][row, begin] == tokenizer.separator_id
            ends = targets[-1] == tokenizer.separator_id
            text = tokenizer.decode(targets)
            found.append(Segment(row, begin, end, bool(starts), ends, text))
    return found
