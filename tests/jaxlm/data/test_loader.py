# SPDX-License-Identifier: Apache-2.0
"""batch(step) depends on the step alone: not on hosts, threads, or where reading began."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from jaxlm.core.errors import DataError
from jaxlm.data.config import DataConfig
from jaxlm.data.loader import BatchSource, _shuffled, measure_loader
from jaxlm.data.mixture import make_mixture
from jaxlm.data.packing import Batch, unpack
from jaxlm.data.prepare import prepare
from jaxlm.data.prepared import PreparedData
from jaxlm.data.shards import ShardReader

MakeConfig = Callable[..., DataConfig]
SCHEDULE = ((0, (3.0, 1.0)), (6, (0.0, 1.0)), (11, (1.0, 1.0)))


@pytest.fixture
def config(make_config: MakeConfig) -> DataConfig:
    return make_config(weight_schedule=SCHEDULE)


@pytest.fixture
def data(config: DataConfig) -> PreparedData:
    return prepare(config)


def assert_same(got: Batch, want: Batch) -> None:
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def joined(parts: list[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def host_slices(batch_size: int, num_hosts: int) -> list[slice]:
    size = batch_size // num_hosts
    return [slice(i * size, (i + 1) * size) for i in range(num_hosts)]


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_hosts_together_read_the_global_batch(
    data: PreparedData, config: DataConfig, num_hosts: int
) -> None:
    source = BatchSource(data, config)
    for step in range(15):
        parts = [source.batch(step, rows) for rows in host_slices(config.batch_size, num_hosts)]
        assert_same(joined(parts), source.batch(step))


def test_stopping_on_one_host_and_going_on_with_four_repeats_and_skips_nothing(
    data: PreparedData, config: DataConfig
) -> None:
    whole = list(BatchSource(data, config).iter_batches(0, 14))
    resumed = list(BatchSource(data, config).iter_batches(0, 5))
    hosts = [BatchSource(data, config).iter_batches(5, 14, r) for r in host_slices(8, 4)]
    resumed += [joined(list(parts)) for parts in zip(*hosts, strict=True)]
    for got, want in zip(resumed, whole, strict=True):
        assert_same(got, want)


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (7, 3)])
def test_read_ahead_gives_the_same_batches_from_any_start(
    data: PreparedData, config: DataConfig, threads: int, prefetch: int
) -> None:
    config = dataclasses.replace(config, read_threads=threads, prefetch=prefetch)
    source = BatchSource(data, config)
    for start, stop in ((0, 12), (9, 13), (4, 4)):
        batches = list(source.iter_batches(start, stop))
        assert len(batches) == stop - start
        for step, batch in zip(range(start, stop), batches, strict=True):
            assert_same(batch, source.batch(step))
    endless = source.iter_batches(3)
    assert_same(next(endless), source.batch(3))


def stored_rows(data: PreparedData, corpus: str) -> dict[bytes, int]:
    reader = ShardReader(data.corpus(corpus).train.shards)
    tokens = unpack(reader.read(range(len(reader))), data.row_format)["tokens"]
    return {row.tobytes(): i for i, row in enumerate(tokens)}


def test_each_epoch_of_a_corpus_holds_each_row_once_in_an_order_of_its_own(
    make_config: MakeConfig,
) -> None:
    config = make_config(batch_size=13)
    data = prepare(config)
    source, mixture = BatchSource(data, config), make_mixture(config)
    walked: dict[str, list[int]] = {"a": [], "b": []}
    known = {name: stored_rows(data, name) for name in walked}
    steps = 3 * sum(c.train.rows for c in data.corpora) // 13
    for step in range(steps):
        rows = iter(source.batch(step)["tokens"])
        for name, count in zip(walked, mixture.counts(step), strict=True):
            walked[name] += [known[name][r.tobytes()] for r in itertools.islice(rows, count)]
    for name, rows in walked.items():
        n = data.corpus(name).train.rows
        epochs = [rows[i : i + n] for i in range(0, len(rows) - n + 1, n)]
        assert len(epochs) >= 1
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        orders = {tuple(epoch) for epoch in epochs} | {tuple(range(n))}
        assert len(orders) == len(epochs) + 1
    assert len(walked["b"]) > 2 * data.corpus("b").train.rows


def test_seed_changes_the_order_and_grain_still_shuffles_as_it_did() -> None:
    """The order is part of what a checkpoint means: another one would repeat and skip rows."""
    first = _shuffled(1000, 0, "stdlib")
    assert [first[k] for k in (0, 1, 2, 999, 1000, 2000)] == GRAIN_ORDER
    assert [_shuffled(1000, 1, "stdlib")[k] for k in range(20)] != [first[k] for k in range(20)]
    assert [_shuffled(1000, 0, "other")[k] for k in range(20)] != [first[k] for k in range(20)]


GRAIN_ORDER = [265, 495, 833, 42, 373, 722]


@pytest.mark.parametrize("num_hosts", [1, 2, 8])
def test_validation_covers_every_row_once_in_order(
    data: PreparedData, config: DataConfig, num_hosts: int
) -> None:
    source = BatchSource(data, config)
    for corpus in data.corpora:
        hosts = [source.valid_batches(corpus.name, r) for r in host_slices(8, num_hosts)]
        batches = [joined(list(parts)) for parts in zip(*hosts, strict=True)]
        got = joined(batches)
        reader = ShardReader(corpus.valid.shards)
        want = unpack(reader.read(range(len(reader))), data.row_format)
        assert_same({name: array[: len(reader)] for name, array in got.items()}, want)
        assert not got["weights"][len(reader) :].any()
        assert len(got["weights"]) == -(-len(reader) // 8) * 8


def test_validation_limit_is_the_head_of_the_whole(data: PreparedData, config: DataConfig) -> None:
    source = BatchSource(data, config)
    whole = list(source.valid_batches("a"))
    for limit in (0, 1, 2, 10**6):
        head = list(source.valid_batches("a", limit=limit))
        assert len(head) == min(limit, len(whole))
        for got, want in zip(head, whole, strict=False):
            assert_same(got, want)


def test_corpus_of_weight_zero_gives_no_rows(make_config: MakeConfig) -> None:
    a, b = make_config().corpora
    config = make_config(corpora=(a, dataclasses.replace(b, weight=0.0)))
    data = prepare(config)
    known = stored_rows(data, "a")
    source = BatchSource(data, config)
    for step in range(10):
        assert all(row.tobytes() in known for row in source.batch(step)["tokens"])
    assert len(list(source.valid_batches("b"))) > 0


def test_epoch_counts_passes_over_all_rows(data: PreparedData, config: DataConfig) -> None:
    rows = sum(corpus.train.rows for corpus in data.corpora)
    assert BatchSource(data, config).epoch(30) == 30 * 8 / rows


def test_damaged_row_is_one_line_from_the_reading_threads_too(make_config: MakeConfig) -> None:
    config = make_config(corpora=make_config().corpora[:1])
    data = prepare(config)
    (shard,) = data.corpora[0].train.shards
    record = ShardReader([shard]).read([5])[0]
    shard.write_bytes(shard.read_bytes().replace(record, bytes(len(record))))
    source = BatchSource(data, config)
    with pytest.raises(DataError, match=r"damaged .*: delete it and prepare the data again"):
        list(source.iter_batches(0, data.corpora[0].train.rows // config.batch_size + 1))
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"damaged .*: delete it and prepare the data again"):
        BatchSource(data, config)


def test_measured_speed_counts_positions_and_padding(
    data: PreparedData, config: DataConfig
) -> None:
    speed = measure_loader(BatchSource(data, config), 5)
    assert speed.tokens_per_s > 0
    assert 0 <= speed.padding < 0.5
