# SPDX-License-Identifier: Apache-2.0
"""Documents into rows of T positions, nothing cropped away; pure numpy.

A document t1..tn is the stream `<doc> t1 .. tn <doc>`: n + 1 predictions, each token once and the
end too.  The stream is cut into pieces of at most T predictions; a piece of m predictions holds
m + 1 tokens, its last being the first of the next piece.  Only a document's last piece may be
shorter than T.  Pieces fill rows by best fit, longest first (Johnson 1973); arXiv:2404.10830.

A record is a row on disk: T + 1 tokens, then T bits that mark the last position of each segment.
Positions after the last mark are padding.  The target of position p is token p + 1, except that a
segment that ends before T - 1 ends its document, so that its last target is the separator.

Legend: B batch  T positions
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """What is needed to write and read records."""

    seq_len: int  # T
    vocab_size: int
    separator_id: int
    pad_id: int

    @property
    def token_dtype(self) -> np.dtype:
        return token_dtype(self.vocab_size)

    @property
    def num_token_bytes(self) -> int:
        return (self.seq_len + 1) * self.token_dtype.itemsize


def token_dtype(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and uint32 that holds every id; little-endian on every machine."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def cut(tokens: np.ndarray, fmt: RowFormat) -> list[np.ndarray]:
    """The pieces of one document (n,): m + 1 tokens for m predictions, m <= T."""
    stream = np.empty(len(tokens) + 2, fmt.token_dtype)
    stream[0] = stream[-1] = fmt.separator_id
    stream[1:-1] = tokens
    return [stream[a : a + fmt.seq_len + 1] for a in range(0, len(stream) - 1, fmt.seq_len)]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Groups of indices whose lengths sum to at most `capacity`, in order of their smallest index.

    Best fit decreasing: each length, longest first, goes where the least room is left over.  Each
    takes O(capacity / 64), by a bit mask of the free lengths that some row has.
    """
    rows: list[list[int]] = []
    rows_by_free: list[list[int]] = [[] for _ in range(capacity + 1)]
    mask = 0  # bit f is set where rows_by_free[f] is not empty
    for i in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        fitting = mask >> lengths[i]
        if fitting:
            free = lengths[i] + (fitting & -fitting).bit_length() - 1
            row = rows_by_free[free].pop()
            rows[row].append(i)
            if not rows_by_free[free]:
                mask ^= 1 << free
        else:
            free, row = capacity, len(rows)
            rows.append([i])
        if free > lengths[i]:
            rows_by_free[free - lengths[i]].append(row)
            mask |= 1 << (free - lengths[i])
    return sorted(rows, key=min)


def pack(pieces: Sequence[np.ndarray], fmt: RowFormat) -> list[bytes]:
    """The records of the rows that hold these pieces, each prediction once."""
    rows = best_fit([len(piece) - 1 for piece in pieces], fmt.seq_len)
    tokens = np.full((len(rows), fmt.seq_len + 1), fmt.pad_id, fmt.token_dtype)
    last = np.zeros((len(rows), fmt.seq_len), bool)
    for r, row in enumerate(rows):
        end = 0
        for i in row:
            begin, end = end, end + len(pieces[i]) - 1
            tokens[r, begin : end + 1] = pieces[i]
            last[r, end - 1] = True
        if end < fmt.seq_len:
            tokens[r, end] = fmt.pad_id
    bits = np.packbits(last, axis=1)
    return [t.tobytes() + b.tobytes() for t, b in zip(tokens, bits, strict=True)]


def empty_record(fmt: RowFormat) -> bytes:
    """A row that is all padding."""
    tokens = np.full(fmt.seq_len + 1, fmt.pad_id, fmt.token_dtype)
    return tokens.tobytes() + bytes(-(-fmt.seq_len // 8))


def unpack(records: Sequence[bytes], fmt: RowFormat) -> Batch:
    """B records as a batch of five (B, T) arrays.

    tokens, targets int32; segment_ids int32: 1, 2, .. and 0 for padding; positions int32: from 0
    in each segment; weights float32: 1, and 0 for padding.
    """
    raw = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), -1)
    stored = raw[:, : fmt.num_token_bytes].view(fmt.token_dtype).astype(np.int32)
    bits = raw[:, fmt.num_token_bytes :]
    last_BT = np.unpackbits(bits, axis=1, count=fmt.seq_len).astype(np.int32)
    ended_BT = np.cumsum(last_BT, axis=1, dtype=np.int32)
    segment_ids_BT = ended_BT - last_BT + 1
    segment_ids_BT *= segment_ids_BT <= ended_BT[:, -1:]
    targets_BT = stored[:, 1:].copy()
    targets_BT[:, :-1][last_BT[:, :-1] == 1] = fmt.separator_id
    p_T = np.arange(fmt.seq_len, dtype=np.int32)
    begin_BT = np.zeros_like(last_BT)
    begin_BT[:, 1:] = last_BT[:, :-1] * p_T[1:]
    begin_BT = np.maximum.accumulate(begin_BT, axis=1)
    weights_BT = (segment_ids_BT > 0).astype(np.float32)
    return {
        "tokens": np.ascontiguousarray(stored[:, :-1]),
        "targets": targets_BT,
        "segment_ids": segment_ids_BT,
        "positions": (p_T - begin_BT) * (segment_ids_BT > 0),
        "weights": weights_BT,
    }
