# SPDX-License-Identifier: Apache-2.0
"""What a broken data pipeline does to batches.

Legend: B batch  T positions
"""

from collections.abc import Callable

import numpy as np

from jaxlm.bench.faults.plant import Scene
from jaxlm.data.packing import Batch, unpack

Change = Callable[[Scene, int, Batch], Batch]


def garbage(at: Callable[[int], bool], share: float = 1.0) -> Change:
    """Text of another alphabet: every token id replaced by another, in a share of the rows."""

    def change(scene: Scene, step: int, batch: Batch) -> Batch:
        if not at(step):
            return batch
        size = scene.config.data.tokenizer.vocab_size
        other = np.random.default_rng(5).permutation(size).astype(np.int32)
        rows = np.arange(len(batch["tokens"]))[:, None] < share * len(batch["tokens"])
        swapped = {k: np.where(rows, other[batch[k]], batch[k]) for k in ("tokens", "targets")}
        return {**batch, **swapped}

    return change


def duplicated(share: float, pool_size: int = 8) -> Change:
    """A share of the rows comes from a few rows, over and over."""

    def change(scene: Scene, step: int, batch: Batch) -> Batch:
        return _mixed(scene, batch, scene.source.batch(0, slice(0, pool_size)), share)

    return change


def leaked(share: float) -> Change:
    """A share of the rows is validation text."""

    def change(scene: Scene, step: int, batch: Batch) -> Batch:
        valid = scene.valid[int(scene.rng.integers(max(1, len(scene.valid) - 1)))]
        return _mixed(scene, batch, valid, share)

    return change


def in_storage_order(buffer: int) -> Change:
    """Rows come as they lie on disk, shuffled within a buffer of so many rows and no farther."""

    def change(scene: Scene, step: int, batch: Batch) -> Batch:
        source, count = scene.source, len(batch["tokens"])
        reader = source._readers[0]
        wanted = range((step - 1) * count, step * count)
        return unpack(
            reader.read([_nearby(i, buffer) % len(reader) for i in wanted]), source._format
        )

    return change


def _nearby(index: int, buffer: int) -> int:
    block, place = divmod(index, buffer)
    return block * buffer + int(np.random.default_rng(block).permutation(buffer)[place])


def shifted(by: int, share: float = 1.0) -> Change:
    """Targets `by` tokens after the right ones, in a share of the rows; -1: the inputs themselves."""

    def change(scene: Scene, step: int, batch: Batch) -> Batch:
        wrong = batch["tokens"] if by < 0 else np.roll(batch["targets"], -by, axis=1)
        rows = np.arange(len(wrong))[:, None] < share * len(wrong)
        return {**batch, "targets": np.where(rows, wrong, batch["targets"])}

    return change


def unmasked(share: float) -> Change:
    """A share of the positions is dropped from the loss, at random."""

    def change(scene: Scene, step: int, batch: Batch) -> Batch:
        keep_BT = scene.rng.random(batch["weights"].shape) >= share
        return {**batch, "weights": (batch["weights"] * keep_BT).astype(np.float32)}

    return change


def trained_on_padding(share: float) -> Change:
    """The last share of every row is padding, and counts."""

    def change(scene: Scene, step: int, batch: Batch) -> Batch:
        T = batch["tokens"].shape[1]
        is_padding_T = np.arange(T) >= (1 - share) * T
        hidden = {
            name: np.where(is_padding_T, 0, batch[name])
            for name in ("tokens", "targets", "segment_ids", "positions")
        }
        return {**batch, **hidden}

    return change


def _mixed(scene: Scene, batch: Batch, other: Batch, share: float) -> Batch:
    """Each row by chance from `other`."""
    size = len(batch["tokens"])
    rows = scene.rng.integers(0, len(other["tokens"]), size)
    chosen = scene.rng.random(size) < share
    return {name: np.where(chosen[:, None], other[name][rows], x) for name, x in batch.items()}
