# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost, nothing is repeated, and batches say what the records mean."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxlm.data.packing import RowFormat, best_fit, cut, empty_record, pack, unpack

SEPARATOR, PAD = 1, 0
lengths_of_documents = st.lists(st.integers(0, 60), min_size=1, max_size=30)
seq_lens = st.integers(2, 33)


def row_format(seq_len: int, vocab_size: int = 1000) -> RowFormat:
    return RowFormat(seq_len, vocab_size, separator_id=SEPARATOR, pad_id=PAD)


def make_documents(lengths: list[int]) -> list[list[int]]:
    """Token lists in which each token says its document and its place."""
    return [[100 + 70 * d + i for i in range(n)] for d, n in enumerate(lengths)]


def batch_of(documents: list[list[int]], fmt: RowFormat) -> dict[str, np.ndarray]:
    pieces = [piece for tokens in documents for piece in cut(np.array(tokens, int), fmt)]
    return unpack(pack(pieces, fmt), fmt)


def segments(batch: dict[str, np.ndarray]) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of every segment, by a walk over every position of every row."""
    found = []
    for tokens, targets, ids, positions in zip(
        *(batch[k] for k in ("tokens", "targets", "segment_ids", "positions")), strict=True
    ):
        for p, segment in enumerate(ids):
            if segment == 0:
                assert not ids[p:].any()  # padding comes last
                assert tokens[p] == PAD
                break
            if positions[p] == 0:
                found.append(([], []))
                assert segment == (ids[p - 1] + 1 if p else 1)
            assert positions[p] == len(found[-1][0])
            found[-1][0].append(int(tokens[p]))
            found[-1][1].append(int(targets[p]))
    return found


@given(lengths=lengths_of_documents, seq_len=seq_lens)
@example(lengths=[0], seq_len=2)
@example(lengths=[15, 16, 17, 31, 32], seq_len=16)  # a document that ends where its row ends
@example(lengths=[13, 1, 0], seq_len=16)
def test_every_token_of_every_document_is_predicted_once_after_the_token_before_it(
    lengths: list[int], seq_len: int
) -> None:
    documents = make_documents(lengths)
    batch = batch_of(documents, row_format(seq_len, vocab_size=5000))
    want = sorted(
        pair
        for tokens in documents
        for pair in zip([SEPARATOR, *tokens], [*tokens, SEPARATOR], strict=True)
    )
    got = sorted(pair for seg in segments(batch) for pair in zip(*seg, strict=True))
    assert got == want
    assert batch["weights"].sum() == len(want)
    np.testing.assert_array_equal(batch["weights"], batch["segment_ids"] > 0)


@given(lengths=lengths_of_documents, seq_len=seq_lens)
def test_segments_are_consecutive_and_join_to_the_documents(
    lengths: list[int], seq_len: int
) -> None:
    documents = make_documents(lengths)
    following = {}  # the first input of a segment -> its targets
    for inputs, targets in segments(batch_of(documents, row_format(seq_len, vocab_size=5000))):
        assert inputs[1:] == targets[:-1]
        if targets != [SEPARATOR] or inputs != [SEPARATOR]:  # the empty documents look alike
            key = (inputs[0], targets[0])
            assert key not in following
            following[key] = targets
    for tokens in filter(None, documents):
        stream = [*tokens, SEPARATOR]
        joined = list(following[SEPARATOR, stream[0]])
        while len(joined) < len(stream):
            joined += following[joined[-1], stream[len(joined)]]
        assert joined == stream


@given(st.lists(st.integers(1, 17), max_size=60))
def test_best_fit_equals_the_textbook_and_wastes_little(lengths: list[int]) -> None:
    """The textbook: longest first, into the fullest row that it fits."""
    capacity = 17
    rows = best_fit(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [f for f in free if f >= length]
        if fitting:
            free.remove(min(fitting))
            free.append(min(fitting) - length)
        else:
            free.append(capacity - length)
    got = sorted(capacity - sum(lengths[i] for i in row) for row in rows)
    assert got == sorted(free)
    assert [min(row) for row in rows] == sorted(min(row) for row in rows)


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(65536, 2), (65537, 4)])
def test_record_has_the_smallest_type_that_holds_the_vocabulary(
    vocab_size: int, itemsize: int
) -> None:
    fmt = row_format(13, vocab_size)
    tokens = np.array([vocab_size - 1, 5])
    (record,) = pack(cut(tokens, fmt), fmt)
    assert len(record) == 14 * itemsize + 2
    assert unpack([record], fmt)["tokens"][0, :4].tolist() == [SEPARATOR, vocab_size - 1, 5, PAD]


def test_batch_has_the_types_that_training_expects_and_empty_rows_count_nothing() -> None:
    fmt = row_format(9)
    batch = unpack([empty_record(fmt), *pack(cut(np.arange(2, 6), fmt), fmt)], fmt)
    types = {name: array.dtype.name for name, array in batch.items()}
    integers = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), "int32")
    assert types == {**integers, "weights": "float32"}
    assert all(array.shape == (2, 9) for array in batch.values())
    assert all(array.flags.c_contiguous for array in batch.values())
    assert not any(array[0].any() for array in batch.values())
    assert batch["weights"][1].tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert batch["targets"][1, :5].tolist() == [2, 3, 4, 5, SEPARATOR]
