# SPDX-License-Identifier: Apache-2.0
"""Prepared once, reused while nothing changed, never trusted when half done."""

import dataclasses
import gzip
import hashlib
import itertools
import json
import lzma
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from jaxlm.core.canonical import canonical_json
from jaxlm.core.errors import DataError, TokenizerError
from jaxlm.data import documents as documents_module
from jaxlm.data import prepare as prepare_module
from jaxlm.data import rows as rows_module
from jaxlm.data.config import CorpusConfig, DataConfig, TokenizerConfig
from jaxlm.data.inspection import segments_of
from jaxlm.data.packing import unpack
from jaxlm.data.prepare import prepare
from jaxlm.data.prepared import PreparedData
from jaxlm.data.shards import ShardReader
from jaxlm.data.tokenizer import load_tokenizer
from tests.jaxlm.data.corpora import VOCAB_SIZE, make_texts, write_jsonl

MakeConfig = Callable[..., DataConfig]
TEXTS = {"a": make_texts(1, 150), "b": make_texts(2, 60)}  # what make_config writes


def split_of(text: str, valid_frac: float) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return "valid" if int(digest[:16], 16) / 16**16 < valid_frac else "train"


def all_rows(data: PreparedData, corpus: str, split: str) -> dict[str, np.ndarray]:
    reader = ShardReader(data.corpus(corpus).split(split).shards)
    return unpack(reader.read(range(len(reader))), data.row_format)


def files_of(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def by_digest(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def test_every_stage_is_said_to_end_once_and_last(make_config: MakeConfig) -> None:
    said: list[tuple[str, float]] = []
    prepare(make_config(), progress=lambda stage, share: said.append((stage, share)))
    for stage in ("train tokenizer", "tokenise a", "pack a", "tokenise b", "pack b"):
        shares = [share for name, share in said if name == stage]
        assert shares == sorted(shares)
        assert shares[-1] == 1 and shares.count(1) == 1


@pytest.mark.parametrize("window", [7, 10**6])
def test_rows_predict_every_token_of_the_splits_documents_once_and_no_other(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(rows_module, "_window_size", lambda seq_len: window)
    data = prepare(make_config())
    tokenizer = load_tokenizer(data.tokenizer_path)
    for name, split in itertools.product(TEXTS, ("train", "valid")):
        texts = [text for text in TEXTS[name] if split_of(text, 0.2) == split]
        end = tokenizer.separator_id
        streams = [[end, *ids, end] for ids in tokenizer.encode_batch(texts)]
        want = Counter(pair for stream in streams for pair in itertools.pairwise(stream))
        rows = all_rows(data, name, split)
        used = rows["weights"] > 0
        pairs = zip(rows["tokens"][used].tolist(), rows["targets"][used].tolist(), strict=True)
        assert Counter(pairs) == want


def test_documents_are_kept_whole_in_the_order_of_their_hash(make_config: MakeConfig) -> None:
    data = prepare(make_config())
    tokenizer = load_tokenizer(data.tokenizer_path)
    for name, split in itertools.product(TEXTS, ("train", "valid")):
        folder = data.corpus(name).folder.parent / "documents"
        got = documents_module.read_documents(folder, split, tokenizer.vocab_size)
        want = by_digest(text for text in TEXTS[name] if split_of(text, 0.2) == split)
        assert [tokenizer.decode(ids.tolist()) for ids in got] == want


def test_inspected_segments_say_where_documents_begin_and_end(make_config: MakeConfig) -> None:
    data = prepare(make_config())
    tokenizer = load_tokenizer(data.tokenizer_path)
    segments = segments_of(all_rows(data, "a", "train"), tokenizer)
    texts = [text for text in TEXTS["a"] if split_of(text, 0.2) == "train"]
    assert sum(s.starts_document for s in segments) == len(texts)
    assert sum(s.ends_document for s in segments) == len(texts)
    assert {s.text for s in segments if s.starts_document and s.ends_document} <= set(texts)
    for row in range(data.corpus("a").train.rows):
        mine = [s for s in segments if s.row == row]
        assert [s.begin for s in mine] == [0, *(s.end for s in mine[:-1])]


def test_targets_of_all_validation_rows_stand_for_exactly_the_documents_bytes(
    make_config: MakeConfig,
) -> None:
    """Bits per byte divides by this sum; the corpora hold long, short and empty documents."""
    data = prepare(make_config())
    table = load_tokenizer(data.tokenizer_path).bytes_per_token_V
    for name, texts in TEXTS.items():
        held_out = [text for text in texts if split_of(text, 0.2) == "valid"]
        rows = all_rows(data, name, "valid")
        counted = int((table[rows["targets"]] * rows["weights"]).sum())
        assert counted == sum(len(text.encode()) for text in held_out)
        assert counted == data.corpus(name).valid.bytes
        assert rows["weights"].sum() == data.corpus(name).valid.tokens + len(held_out)
        padding = 1 - rows["weights"].mean()
        assert data.corpus(name).valid.padding == pytest.approx(padding, abs=1e-6)


def test_baselines_are_those_of_gzip_and_xz_on_the_documents_together(
    make_config: MakeConfig,
) -> None:
    data = prepare(make_config())
    held_out = [text for text in TEXTS["a"] if split_of(text, 0.2) == "valid"]
    text = "".join(by_digest(held_out)).encode()
    bits = {"gzip": 8 * len(gzip.compress(text, 9)), "xz": 8 * len(lzma.compress(text, preset=9))}
    assert data.baselines["a"] == {name: n / len(text) for name, n in bits.items()}


def test_second_run_writes_nothing_and_another_seq_len_does_not_tokenise(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    first = prepare(config)
    cache = Path(config.cache_dir)
    before = files_of(cache)
    monkeypatch.setattr(prepare_module, "iter_documents", None)  # a call would fail
    assert prepare(config) == first
    assert files_of(cache) == before
    longer = prepare(dataclasses.replace(config, seq_len=64))
    assert set(before).issubset(files_of(cache))
    assert longer.data_id != first.data_id
    assert longer.row_format.seq_len == 64


def test_changed_input_is_noticed_named_and_prepared_anew(make_config: MakeConfig) -> None:
    config = make_config()
    first = prepare(config)
    path = Path(config.corpora[1].source) / "docs.jsonl"
    text = path.read_bytes()
    stat = path.stat()
    path.write_bytes(text.replace(b"return", b"RETURN", 1))  # of the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    second = prepare(config)
    assert second.notices == (f"corpus 'b': {path} changed: prepared anew",)
    assert second.data_id != first.data_id
    write_jsonl(path.parent / "more.jsonl", ["x y z"])
    assert prepare(config).notices == (
        f"corpus 'b': {path.parent}/more.jsonl was added: prepared anew",
    )
    (path.parent / "more.jsonl").unlink()
    path.write_bytes(text)
    back = f"corpus 'b': {path.parent}/more.jsonl was removed and 1 more change"
    assert prepare(config).notices == (f"{back}: found in the cache",)
    assert prepare(config) == first


def test_changed_input_of_the_same_size_and_time_is_noticed(make_config: MakeConfig) -> None:
    config = make_config()
    prepare(config)
    path = Path(config.corpora[1].source) / "docs.jsonl"
    text, stat = path.read_bytes(), path.stat()
    for changed, write in (  # in place; and by another file that takes its place
        (text.replace(b"return", b"RETURN", 1), path.write_bytes),
        (text, lambda data: path.with_suffix(".new").write_bytes(data)),
    ):
        write(changed)
        if path.with_suffix(".new").exists():
            path.with_suffix(".new").rename(path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert prepare(config).notices[0].startswith(f"corpus 'b': {path} changed")


def test_hashes_that_an_older_version_remembered_are_taken_again(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config()
    first = prepare(config)
    for memory in (tmp_path / "cache" / "sources").iterdir():
        old = ("path", "size", "mtime_ns", "sha256")
        rows = [{name: row[name] for name in old} for row in json.loads(memory.read_text())]
        memory.write_text(json.dumps([row | {"sha256": "0" * 64} for row in rows]))
    assert prepare(config) == first


def test_time_of_change_alone_changes_nothing(make_config: MakeConfig) -> None:
    config = make_config()
    first = prepare(config)
    os.utime(Path(config.corpora[0].source) / "docs.jsonl", (1, 1))
    assert prepare(config) == first
    assert first.notices == ()


def test_moved_input_and_order_of_files_change_nothing(make_config: MakeConfig) -> None:
    config = make_config()
    first = prepare(config)
    source = Path(config.corpora[0].source)
    source.rename(source.with_name("elsewhere"))
    moved = dataclasses.replace(config.corpora[0], source=str(source.with_name("elsewhere")))
    again = prepare(dataclasses.replace(config, corpora=(moved, config.corpora[1])))
    assert again.data_id == first.data_id


@pytest.mark.parametrize("victim", ["train_tokenizer", "compression_baselines", "build_rows"])
def test_crash_leaves_nothing_that_the_next_run_trusts(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    config = make_config()
    with monkeypatch.context() as patch:

        def crash(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(prepare_module, victim, crash)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert not list(Path(config.cache_dir).glob(".unfinished*"))
    survived = prepare(config)
    fresh = prepare(dataclasses.replace(config, cache_dir=config.cache_dir + "2"))
    assert survived.data_id == fresh.data_id
    assert contents(config.cache_dir) == contents(config.cache_dir + "2")


def contents(cache_dir: str) -> dict[str, bytes]:
    """All shards and orders, by relative path."""
    paths = [p for p in Path(cache_dir).rglob("*") if p.suffix in (".array_record", ".npy")]
    return {str(p.relative_to(cache_dir)): p.read_bytes() for p in paths}


def run_prepare(config: DataConfig, **popen: object) -> subprocess.Popen:
    code = (
        "from jaxlm.data.config import *; from jaxlm.data.prepare import prepare; import json\n"
        f"c = json.loads({canonical_json(config)!r})\n"
        "c['corpora'] = tuple(CorpusConfig(**x) for x in c['corpora'])\n"
        "c['tokenizer'] = TokenizerConfig(**c['tokenizer'])\n"
        "c['weight_schedule'] = ()\n"
        "print(prepare(DataConfig(**c), progress=lambda s, f: print(s, flush=True)).data_id)"
    )
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, **popen
    )


@pytest.mark.parametrize("stage", ["train tokenizer", "tokenise a", "pack b"])
def test_killed_process_leaves_nothing_that_the_next_run_trusts(
    make_config: MakeConfig, stage: str
) -> None:
    config = make_config()
    killed = run_prepare(config)
    while stage not in killed.stdout.readline():
        assert killed.poll() is None
    killed.kill()
    killed.wait()
    killed.stdout.close()
    survived = prepare(config)
    assert not list(Path(config.cache_dir).glob(".unfinished*"))
    fresh = prepare(dataclasses.replace(config, cache_dir=config.cache_dir + "2"))
    assert contents(config.cache_dir) == contents(config.cache_dir + "2")
    assert survived.data_id == fresh.data_id


def test_two_processes_at_once_agree_and_work_once(make_config: MakeConfig) -> None:
    both = [run_prepare(make_config()) for _ in range(2)]
    lines = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert lines[0][-1] == lines[1][-1] == prepare(make_config()).data_id
    built = [any(stage.startswith("pack") for stage in out) for out in lines]
    assert sorted(built) == [False, True]  # one found all done


def test_shard_of_another_size_is_built_anew(make_config: MakeConfig) -> None:
    config = make_config()
    first = prepare(config)
    before = contents(config.cache_dir)
    shard = first.corpora[0].train.shards[0]
    os.truncate(shard, 100)
    assert prepare(config) == first
    assert contents(config.cache_dir) == before


def test_more_processes_give_the_same_shards(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(corpora=make_config().corpora[:1])
    prepare(config)
    monkeypatch.setattr(documents_module, "_BYTES_FOR_PROCESSES", 0)
    monkeypatch.setattr(documents_module, "_CHUNK_CHARS", 5000)  # many chunks
    prepare(dataclasses.replace(config, cache_dir=config.cache_dir + "2"))
    assert contents(config.cache_dir) == contents(config.cache_dir + "2")


def test_given_tokenizer_is_used_and_checked(make_config: MakeConfig, tmp_path: Path) -> None:
    trained = prepare(make_config())
    path = tmp_path / "given.model"
    path.write_bytes(trained.tokenizer_path.read_bytes())
    given = TokenizerConfig(vocab_size=VOCAB_SIZE, path=str(path))
    again = prepare(make_config(tokenizer=given))
    assert again.data_id == trained.data_id
    with pytest.raises(TokenizerError, match="has 320 pieces"):
        prepare(make_config(tokenizer=dataclasses.replace(given, vocab_size=400)))
    path.unlink()
    with pytest.raises(TokenizerError, match="cannot be read"):
        prepare(make_config(tokenizer=given))


def test_data_id_depends_on_all_that_batches_depend_on(make_config: MakeConfig) -> None:
    config = make_config()
    changes = [{}, {"seed": 1}, {"batch_size": 9}, {"seq_len": 38}, {"valid_frac": 0.21}]
    changes += [{"weight_schedule": ((0, (1.0, 2.0)),)}, {"corpora": config.corpora[::-1]}]
    ids = [prepare(make_config(**change)).data_id for change in changes]
    assert len(set(ids)) == len(ids)
    irrelevant = make_config(read_threads=7, prefetch=3, weight_schedule=((0, (2.0, 2.0)),))
    assert prepare(irrelevant).data_id == ids[0]


def test_tokenizer_never_sees_a_validation_document(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = prepare_module.train_tokenizer
    monkeypatch.setattr(
        prepare_module, "train_tokenizer", lambda t, c: real(seen.extend(t) or seen, c)
    )
    prepare(make_config())
    assert {split_of(text, 0.2) for text in seen} == {"train"}
    assert set(seen) >= {t for t in TEXTS["a"] + TEXTS["b"] if split_of(t, 0.2) == "train"}


def test_bad_input_is_one_line_and_leaves_no_half_folder(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", make_texts(3, 40)[-1:])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "' + "abc def " * 500 + '"}\n{')
    for changes, message in [
        ({"batch_size": 10_000}, r"corpus 'a': has \d+ training rows of 37 tokens, but one batch"),
        (
            {"corpora": (CorpusConfig(name="c", source=str(one)),)},
            "'c': the training split has no text",
        ),
        (
            {"corpora": (CorpusConfig(name="c", source=str(one)),), "valid_frac": 1e-9},
            "'c': the validation split has no text",
        ),
        ({"corpora": (CorpusConfig(name="c", source=str(broken)),)}, "broken.jsonl:2: not JSON"),
        ({"corpora": (CorpusConfig(name="c", source="/no/such"),)}, "no file matches '/no/such'"),
        ({"cache_dir": str(one)}, "one.jsonl: cannot be written"),
    ]:
        config = make_config(**changes)
        with pytest.raises((DataError, TokenizerError), match=message) as caught:
            prepare(config)
        assert "\n" not in str(caught.value)
        assert not list(Path(config.cache_dir).glob(".unfinished*"))
    assert not Path("/no/such").exists()
