# SPDX-License-Identifier: Apache-2.0
"""Fingerprints see the same text however it is packed; targets and masks are checked exactly."""

import numpy as np
import pytest

from jaxlm.data.packing import RowFormat, cut, pack, unpack
from jaxlm.train import batch_probe
from jaxlm.train.batch_probe import BatchProbe

FMT = RowFormat(seq_len=48, vocab_size=300, separator_id=1, pad_id=2)
BYTES = np.full(300, 3, np.int32)


def rows_of(*documents):
    return unpack(pack([p for d in documents for p in cut(d, FMT)], FMT), FMT)


@pytest.fixture
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 300, n).astype(np.uint16) for n in (30, 100, 45, 20, 70, 33)]


def probe_of(*valid):
    return BatchProbe([rows_of(*valid)], BYTES, FMT.seq_len)


def test_text_seen_before_is_seen_in_another_packing(documents):
    probe = probe_of(documents[5])
    assert probe(rows_of(*documents[:3]))["data/seen_frac"] == 0
    assert probe(rows_of(documents[1], documents[3]))["data/seen_frac"] > 0.7
    assert probe(rows_of(documents[4]))["data/seen_frac"] == 0


def test_a_resumed_run_has_seen_what_it_saw_before(documents, monkeypatch):
    monkeypatch.setattr(batch_probe, "MEMORY", 3)  # two of the three batches are in the older half
    steps = [rows_of(*d) for d in (documents[:2], documents[2:4], documents[4:], documents[:3])]
    whole, before, after = (probe_of(documents[5]) for _ in range(3))
    want = [whole(batch)["data/seen_frac"] for batch in steps]
    got = [before(batch)["data/seen_frac"] for batch in steps[:3]]
    after.remember(before.memory())
    assert [*got, after(steps[3])["data/seen_frac"]] == want
    assert want[-1] > 0 and len(before.memory()["older_pieces"]) > 0


def test_validation_text_is_found_beside_other_text(documents):
    probe = probe_of(documents[0], documents[1])
    assert probe(rows_of(documents[2], documents[3]))["data/valid_frac"] == 0
    share = probe(rows_of(documents[0], documents[2]))["data/valid_frac"]
    assert 0.3 < share < 0.5  # 31 of 77 predictions


def test_equal_batches_have_equal_ids_and_others_do_not(documents):
    probe = probe_of(documents[5])
    ids = [
        probe(rows_of(*d))["data/batch_id"] for d in (documents[:2], documents[:2], documents[2:4])
    ]
    assert ids[0] == ids[1] != ids[2]
    assert all(i == int(i) and i < 2**53 for i in ids)


def test_right_targets_and_masks_are_not_suspected(documents):
    found = probe_of(documents[5])(rows_of(*documents[:5]))
    assert found["data/shifted_frac"] == 0
    assert found["data/mask_error_frac"] == 0
    assert found["data/bytes_per_token"] == 3


def test_wrong_targets_and_masks_are_measured(documents):
    probe, batch = probe_of(documents[5]), rows_of(*documents[:5])
    half = np.arange(len(batch["tokens"]))[:, None] < len(batch["tokens"]) / 2
    copied = {**batch, "targets": np.where(half, batch["tokens"], batch["targets"])}
    assert 0.3 < probe(copied)["data/shifted_frac"] < 0.7
    everywhere = {**batch, "weights": np.ones_like(batch["weights"])}
    padding = float((batch["segment_ids"] == 0).mean())
    assert probe(everywhere)["data/mask_error_frac"] == pytest.approx(padding)
    assert padding > 0


def test_rows_of_padding_are_no_text(documents):
    empty = {k: np.zeros_like(x) for k, x in rows_of(documents[0]).items()}
    found = probe_of(documents[5])(empty)
    assert found["data/seen_frac"] == found["data/valid_frac"] == 0
