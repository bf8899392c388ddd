# SPDX-License-Identifier: Apache-2.0
"""Batches as a pure function of (data, seed, mixture, step), on any host and by any thread.

Row k of a corpus, counted over the whole training, is row `order[k]` of its shards, where `order`
is Grain's shuffle: a permutation computed index by index, another one in each epoch.  The mixture
says which k a step takes.  Grain's threads read ahead.

Legend: B batch (all hosts)  T positions
"""

import dataclasses
import hashlib
import time
from collections.abc import Iterator

import grain

from jaxlm.data.config import DataConfig
from jaxlm.data.mixture import make_mixture
from jaxlm.data.packing import Batch, empty_record, unpack
from jaxlm.data.prepared import PreparedData
from jaxlm.data.shards import ShardReader


class BatchSource:
    """The batches of prepared data.  Reads nothing before it is asked, and remembers nothing."""

    def __init__(self, prepared: PreparedData, config: DataConfig, split: str = "train") -> None:
        self.config = config
        self._format = prepared.row_format
        self._mixture = make_mixture(config)
        self._readers = [ShardReader(c.split(split).shards) for c in prepared.corpora]
        self._orders = [
            _shuffled(len(reader), config.seed, corpus.name)
            for reader, corpus in zip(self._readers, prepared.corpora, strict=True)
        ]
        self._valid = {c.name: ShardReader(c.valid.shards) for c in prepared.corpora}

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Batch `step` of B rows, or those of its rows that `rows` selects: (B, T) arrays.

        `tokens`, `targets`, `segment_ids`, `positions` int32, `weights` float32: see
        packing.unpack.  Only the selected rows are read.
        """
        selected = range(self.config.batch_size)[rows or slice(None)]
        used, counts = self._mixture.used(step), self._mixture.counts(step)
        records: list[bytes] = []
        begin = 0
        for reader, order, first, count in zip(
            self._readers, self._orders, used, counts, strict=True
        ):
            mine = [b - begin for b in selected if begin <= b < begin + count]
            records += reader.read([order[first + i] for i in mine])
            begin += count
        return unpack(records, self._format)

    def epoch(self, step: int) -> float:
        """Passes over the rows of all corpora together before batch `step`."""
        return step * self.config.batch_size / sum(map(len, self._readers))

    def iter_batches(
        self, start: int, stop: int | None = None, rows: slice | None = None
    ) -> Iterator[Batch]:
        """batch(start), batch(start + 1), .. up to `stop`, read ahead by threads."""
        steps = grain.MapDataset.range(start, stop if stop is not None else 1 << 40)
        options = grain.ReadOptions(
            num_threads=self.config.read_threads, prefetch_buffer_size=self.config.prefetch
        )
        return iter(steps.map(lambda step: self.batch(int(step), rows)).to_iter_dataset(options))

    def valid_batches(
        self, corpus: str, rows: slice | None = None, limit: int | None = None
    ) -> Iterator[Batch]:
        """Each validation row of `corpus` once, in order, in batches of B.

        The last batch is filled with rows of padding.  `limit` stops after as many batches; the
        rows are in the shuffled order of their documents, so that these are a fair sample.
        """
        reader = self._valid[corpus]
        batch_size = self.config.batch_size
        num_batches = -(-len(reader) // batch_size)
        for i in range(num_batches if limit is None else min(limit, num_batches)):
            indices = range(i * batch_size, (i + 1) * batch_size)[rows or slice(None)]
            records = reader.read([k for k in indices if k < len(reader)])
            records += [empty_record(self._format)] * (len(indices) - len(records))
            yield unpack(records, self._format)


@dataclasses.dataclass(frozen=True)
class LoaderSpeed:
    """How fast batches come."""

    tokens_per_s: float  # positions, padding included
    padding: float  # share of the positions that are padding


def measure_loader(source: BatchSource, num_batches: int, start: int = 0) -> LoaderSpeed:
    """Reads `num_batches` batches, after one that is not counted, with read-ahead."""
    batches = source.iter_batches(start, start + num_batches + 1)
    next(batches)
    begin = time.perf_counter()
    used = [batch["weights"] for batch in batches]
    seconds = time.perf_counter() - begin
    positions = sum(weights_BT.size for weights_BT in used)
    predictions = sum(float(weights_BT.sum()) for weights_BT in used)
    return LoaderSpeed(positions / seconds, 1 - predictions / positions)


def _shuffled(num_rows: int, seed: int, corpus: str) -> grain.MapDataset:
    """k -> row, a new permutation every `num_rows`; corpora of one size get different ones."""
    digest = hashlib.sha256(f"{seed}:{corpus}".encode()).digest()
    return grain.MapDataset.range(num_rows).shuffle(seed=int.from_bytes(digest[:4]))
