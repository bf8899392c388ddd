# SPDX-License-Identifier: Apache-2.0
"""Records come back by number over several files, and a full disk is one line."""

import threading
from pathlib import Path

import pytest

from jaxlm.core.errors import DataError
from jaxlm.data import shards
from jaxlm.data.shards import ShardReader, ShardWriter


def test_records_come_back_by_number_across_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", 40)
    records = [bytes([i]) * (i % 11) for i in range(50)]  # empty ones too
    writer = ShardWriter(tmp_path, "train")
    write_and_close(writer, records)
    assert len(writer.names) > 3
    reader = ShardReader([tmp_path / name for name in writer.names])
    assert reader.read(range(50)) == records
    assert reader.read([33, 2, 33, 0]) == [records[i] for i in (33, 2, 33, 0)]
    assert reader.read([]) == []


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train-00000.array_record").symlink_to("/dev/full")
    writer = ShardWriter(tmp_path, "train")
    with pytest.raises(DataError, match=r"cannot be written .*No space left on device") as caught:
        write_and_close(writer, [bytes(1000)] * 10_000)
    assert "\n" not in str(caught.value)


def write_and_close(writer: ShardWriter, records: list[bytes]) -> None:
    with writer:
        for record in records:
            writer.write(record)


def test_a_machine_without_processes_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ShardWriter(tmp_path, "train")
    write_and_close(writer, [b"a row"])
    reader = ShardReader([tmp_path / name for name in writer.names])

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(DataError, match=r"no process left .* give the same command again"):
        reader.read([0])


def test_missing_shard_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"damaged .*No such file.*: delete it and prepare"):
        ShardReader([tmp_path / "train-00000.array_record"])
