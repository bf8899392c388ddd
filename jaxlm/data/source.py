# SPDX-License-Identifier: Apache-2.0
"""Documents out of files, in an order that depends on nothing but the files' names.

`.txt`: the file is one document.  `.jsonl`, `.jsonl.gz`, `.jsonl.zst`: each line is one.
`.parquet`: each row is one.  `stdlib`: the running Python's own library, source and help pages.
Standard library only, but for `.parquet` and `.zst`, which import pyarrow when first read.
"""

import contextlib
import dataclasses
import glob
import gzip
import io
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.core.errors import DataError
from jaxlm.data.config import CorpusConfig

STDLIB = "stdlib"


@dataclasses.dataclass(frozen=True)
class Document:
    """One text; `name` says where it came from, for messages."""

    name: str
    text: str


def list_files(corpus: CorpusConfig) -> list[Path]:
    """The corpus's files, sorted.  Raises DataError where there is none or one of no known kind."""
    if corpus.source == STDLIB:
        return _stdlib_files()
    root = Path(corpus.source).expanduser()
    if root.is_dir():
        files = [path for path in _walk(root, lambda name: name[0] == ".") if kind_of(path)]
    elif root.exists():
        files = [root]
    else:
        matches = sorted(map(Path, glob.glob(str(root), recursive=True)), reverse=True)
        # once each, by its first name: "**" follows links, also those that lead back
        files = list({path.resolve(): path for path in matches if path.is_file()}.values())
    kinds = ", ".join(_READERS)
    if not files:
        raise DataError(
            f"corpus {corpus.name!r}: no file matches {corpus.source!r}: "
            f"give a file, a directory or a glob of {kinds}"
        )
    for path in files:
        if not kind_of(path):
            raise DataError(f"{path}: not a kind of file that can be read: use {kinds}")
    return sorted(files)


def iter_documents(corpus: CorpusConfig) -> Iterator[Document]:
    """All documents, file after file.  Raises DataError at the first that cannot be read."""
    for path in list_files(corpus):
        with readable(path):
            if os.path.getsize(path) == 0:
                raise DataError(f"{path}: the file is empty: put text in it or leave it out")
            if corpus.source != STDLIB:
                yield from _READERS[kind_of(path)](path, corpus.text_field)
            elif path.parts[-2:] == _TOPICS:
                yield from _help_topics()
            else:
                yield from _read_text(path)


def kind_of(path: Path) -> str:
    """The known ending of the file's name, or ""."""
    return next((ending for ending in _READERS if path.name.endswith(ending)), "")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what the operating system says about an unreadable `path` into a DataError."""
    try:
        yield
    except OSError as e:
        reason = e.strerror or e
        raise DataError(f"{path}: cannot be read ({reason}): mend it or leave it out") from e


# --- Python's own library -----------------------------------------------------------------------

_TOPICS = ("pydoc_data", "topics.py")
_NOT_TEXT = frozenset({"site-packages", "__pycache__", "test", "tests", "idle_test"})


def _stdlib_files() -> list[Path]:
    """Non-test .py and .txt that people wrote: no build configuration, no empty __init__.py."""

    def skip(name: str) -> bool:
        return name in _NOT_TEXT or name.startswith("config-")

    return sorted(
        path
        for path in _walk(Path(sysconfig.get_paths()["stdlib"]), skip)
        if path.suffix in (".py", ".txt")
        and not path.name.startswith("_sysconfigdata")
        and path.stat().st_size > 0
    )


def _help_topics() -> Iterator[Document]:
    """What help("if") prints: the language reference's pages, each a document."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield Document(f"pydoc_data.topics:{topic}", topics[topic])


# --- one reader for each kind of file -----------------------------------------------------------


def _read_text(path: Path, _: str = "") -> Iterator[Document]:
    yield Document(str(path), _decode(path.read_bytes(), 0, path))


def _read_json_lines(path: Path, field: str) -> Iterator[Document]:
    offset = 0
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield Document(where, _text_of_json(_decode(line, offset, path), field, where))
        offset += len(line)


def _text_of_json(line: str, field: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as e:
        raise DataError(f"{where}: not JSON ({e}): each line must be one JSON object") from e
    except RecursionError:
        raise DataError(
            f"{where}: nested too deeply: each line must be one JSON object that holds its text directly"
        ) from None
    if not isinstance(value, dict) or field not in value:
        held = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise DataError(f"{where}: no field {field!r} among: {held}; set CorpusConfig.text_field")
    return _checked_text(value[field], f"{where}: field {field!r}")


def _checked_text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise DataError(
            f"{where} must be a string, got {type(text).__name__}: leave the record out"
        )
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DataError(f"{where} holds half of a surrogate pair at character {e.start}") from e
    return text


def _read_parquet(path: Path, field: str) -> Iterator[Document]:
    pyarrow = _import_pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                held = ", ".join(file.schema_arrow.names)
                raise DataError(
                    f"{path}: no column {field!r} among: {held}; set CorpusConfig.text_field"
                )
            number = 0
            for batch in file.iter_batches(columns=[field], batch_size=1024):
                for text in batch.column(0).to_pylist():
                    where = f"{path}:row {number}"
                    yield Document(where, _checked_text(text, f"{where}: column {field!r}"))
                    number += 1
    except pyarrow.ArrowException as e:
        reason = str(e).splitlines()[0]
        raise DataError(f"{path}: broken parquet ({reason}): write the file again") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: column {field!r} holds invalid UTF-8 ({e.reason})") from e


_READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".jsonl.zst": _read_json_lines,
    ".parquet": _read_parquet,
}


# --- bytes --------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with _open(path) as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{path}: broken or truncated gzip ({e}): write the file again") from e


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        stream = _import_pyarrow(path).input_stream(str(path), compression="zstd")
        return io.BufferedReader(stream, 1 << 20)
    return open(path, "rb")


def _decode(data: bytes, offset: int, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise DataError(
            f"{path}: invalid UTF-8 at byte {offset + e.start}: convert the file to UTF-8"
        ) from e


def _import_pyarrow(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise DataError(f"{path}: reading it needs pyarrow: pip install 'jaxlm[data]'") from e
    return pyarrow


def _walk(root: Path, skip: Callable[[str], bool]) -> Iterator[Path]:
    """All files under `root` but in directories that `skip` names, or that are links."""
    for top, directories, names in os.walk(root):
        directories[:] = [name for name in directories if not skip(name)]
        yield from (Path(top) / name for name in names)
