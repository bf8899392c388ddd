# SPDX-License-Identifier: Apache-2.0
"""Records in ArrayRecord files: one to a group, so that any can be read alone."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from jaxlm.core.errors import DataError
from jaxlm.data.cache import writing

_SHARD_BYTES = 1 << 28  # of records in one file
_OPTIONS = "group_size:1,uncompressed"  # compressed: 2/3 of the size, 1/5 of the writing speed


class ShardWriter:
    """Writes records, in order, to `<split>-00000.array_record` and further in `folder`."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self.names: list[str] = []
        self._open_next()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, record: bytes) -> None:
        """Raises DataError where the disk is full."""
        if self._room <= 0:
            self._close()
            self._open_next()
        with _as_writing_error(self._folder):
            self._writer.write(record)
        self._room -= len(record)

    def _open_next(self) -> None:
        self.names.append(f"{self._split}-{len(self.names):05d}.array_record")
        with _as_writing_error(self._folder):
            self._writer = ArrayRecordWriter(str(self._folder / self.names[-1]), _OPTIONS)
        self._room = _SHARD_BYTES

    def _close(self) -> None:
        with _as_writing_error(self._folder):
            self._writer.close()


class ShardReader:
    """The records of some shards by number, from any thread; not in a forked process."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        with self._as_damage():
            self._source = ArrayRecordDataSource([str(path) for path in paths])

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Raises DataError where a shard is damaged."""
        if not len(indices):
            return []
        with self._as_damage():
            return list(self._source.__getitems__(indices))

    @contextlib.contextmanager
    def _as_damage(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as e:  # what ArrayRecord raises, for a file that is gone too
            folder, reason = self._paths[0].parent, str(e).partition(";")[0]
            if "start new thread" in reason:  # raised by Python: the files are as they were
                raise DataError(
                    f"{folder}: cannot be read ({reason}): the machine has no process left for it; "
                    "end others, then give the same command again"
                ) from e
            raise DataError(
                f"{folder}: damaged ({reason}): delete it and prepare the data again"
            ) from e


@contextlib.contextmanager
def _as_writing_error(folder: Path) -> Iterator[None]:
    with writing(folder):
        try:
            yield
        except RuntimeError as e:  # what ArrayRecord raises; the reason comes first
            raise OSError(str(e).partition(";")[0]) from e
