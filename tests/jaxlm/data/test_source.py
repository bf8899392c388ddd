# SPDX-License-Identifier: Apache-2.0
"""Documents come whole and in one order, and each bad input is one clear line."""

import gzip
import json
import re
import sys
from pathlib import Path

import pytest

from jaxlm.core.errors import DataError
from jaxlm.data.config import CorpusConfig
from jaxlm.data.source import iter_documents, list_files

TEXTS = ["one\r\n\n", "zwei é日\x00", "", " three "]
LINES = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS).encode()


def corpus(source: object, **changes: str) -> CorpusConfig:
    return CorpusConfig(name="c", source=str(source), **changes)


def texts(source: object, **changes: str) -> list[str]:
    return [document.text for document in iter_documents(corpus(source, **changes))]


def write_zst(path: Path, data: bytes) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.output_stream(str(path), compression="zstd") as file:
        file.write(data)


def write_parquet(path: Path, **columns: list) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def error(source: object, **changes: str) -> str:
    with pytest.raises(DataError) as caught:
        texts(source, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    write_zst(tmp_path / "c.jsonl.zst", LINES)
    write_parquet(tmp_path / "d.parquet", text=TEXTS)
    for path in tmp_path.iterdir():
        assert texts(path) == TEXTS, path
    assert texts(tmp_path) == texts(f"{tmp_path}/*.*") == TEXTS * 4


def test_text_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\n\x00b")
    assert texts(tmp_path / "a.txt") == ["\ufeffa\r\n\x00b"]


def test_directory_is_read_in_order_of_names_and_without_other_files(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b/a.txt", "a.txt", ".git/x.txt", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert texts(tmp_path) == texts(f"{tmp_path}/**/*.txt") == ["a.txt", "b/a.txt", "b/z.txt"]


def test_jsonl_field_is_configurable_and_blank_lines_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n\n{"body": "y"}')
    assert texts(tmp_path, text_field="body") == ["x", "y"]


def test_stdlib_holds_source_and_help_but_no_tests_and_no_machine_files() -> None:
    names = [str(path) for path in list_files(corpus("stdlib"))]
    assert any(name.endswith("/json/decoder.py") for name in names)
    assert not [n for n in names if re.search(r"/(tests?|site-packages|idle_test)/|_sysconfig", n)]
    documents = {d.name: d.text for d in iter_documents(corpus("stdlib"))}
    assert documents["pydoc_data.topics:if"].lstrip().startswith('The "if" statement')
    assert not [name for name in documents if name.endswith("topics.py")]
    assert sum(map(len, documents.values())) > 8_000_000


def test_no_match_and_unknown_kind_are_named(tmp_path: Path) -> None:
    assert "no file matches" in error(tmp_path / "nothing*.txt")
    assert "no file matches" in error(tmp_path)
    (tmp_path / "a.pdf").write_text("x")
    assert "a.pdf: not a kind of file" in error(tmp_path / "a.pdf")


def test_empty_and_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert "a.txt: the file is empty" in error(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    assert "a.txt: cannot be read (No such file" in error(tmp_path)


def test_invalid_utf8_is_located(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\xffc")
    assert "a.txt: invalid UTF-8 at byte 2" in error(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    assert "a.jsonl: invalid UTF-8 at byte 24" in error(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "a.jsonl:2: not JSON"),
        ('{"body": 1}', "a.jsonl:2: no field 'text' among: body"),
        ("[1]", "a.jsonl:2: no field 'text' among: list"),
        ('{"text": 5}', "a.jsonl:2: field 'text' must be a string, got int"),
        (r'{"text": "x\ud800"}', "a.jsonl:2: field 'text' holds half of a surrogate pair"),
    ],
)
def test_bad_json_line_is_located(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n' + line)
    assert message in error(tmp_path)


def test_truncated_and_garbled_compressed_files_are_named(tmp_path: Path) -> None:
    long = LINES * 1000
    packed = gzip.compress(long)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    assert "a.jsonl.gz: broken or truncated gzip" in error(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.jsonl.gz").write_bytes(b"garbage")
    assert "b.jsonl.gz: broken or truncated gzip" in error(tmp_path / "b.jsonl.gz")
    write_zst(tmp_path / "a.jsonl.zst", long)
    whole = (tmp_path / "a.jsonl.zst").read_bytes()
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    assert "a.jsonl.zst: cannot be read (Truncated" in error(tmp_path / "a.jsonl.zst")


def test_broken_parquet_wrong_column_and_null_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, text=["a", None])
    assert "a.parquet:row 1: column 'text' must be a string, got NoneType" in error(path)
    assert "a.parquet: no column 'body' among: text" in error(path, text_field="body")
    path.write_bytes(path.read_bytes()[:-20])
    assert "a.parquet: broken parquet" in error(path)


def test_missing_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install 'jaxlm[data]'" in error(tmp_path / "a.parquet")
