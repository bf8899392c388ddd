# SPDX-License-Identifier: Apache-2.0
"""From a DataConfig to rows on disk, doing only what is not there yet.

    <cache_dir>/sources/<..>.json              hashes of the source files
                tokenizers/<id>/               tokenizer.model, manifest.json
                corpora/<name>-<id>/documents/ tokenised documents, their order, manifest.json
                corpora/<name>-<id>/rows-<T>/  packed rows, manifest.json

Each id is the sha256 of all that the folder's content depends on, so a folder is never out of date:
a changed source or setting has another id, and its folder is built anew beside the old one.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.canonical import content_id
from jaxlm.core.errors import DataError, TokenizerError
from jaxlm.data.cache import ensure, locked, read_manifest, writing
from jaxlm.data.config import CorpusConfig, DataConfig
from jaxlm.data.documents import (
    SPLITS,
    build_documents,
    compression_baselines,
    digest_of,
    is_held_out,
)
from jaxlm.data.fingerprint import SourceFile, fingerprint, remember
from jaxlm.data.mixture import make_mixture
from jaxlm.data.packing import RowFormat
from jaxlm.data.prepared import PreparedCorpus, PreparedData, PreparedSplit
from jaxlm.data.rows import build_rows
from jaxlm.data.source import iter_documents, kind_of, list_files
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.data.tokenizer_training import sample_texts, train_tokenizer

FORMAT = 1  # of everything in the cache; another number, another id

Progress = Callable[[str, float], None]


def prepare(config: DataConfig, *, progress: Progress | None = None) -> PreparedData:
    """Trains the tokenizer, tokenises and packs, or finds that all done in the cache.

    `progress(stage, share done)` is called often.  Two processes may prepare at once: the second
    waits for the first and reuses its work.  A crash leaves nothing that is used later, and a
    mistake leaves what was there, and whole folders that another try can use.

    Raises DataError or TokenizerError for whatever the user must mend.
    """
    progress = progress or (lambda stage, share: None)
    files = [list_files(corpus) for corpus in config.corpora]  # fails before anything is written
    cache_dir = Path(config.cache_dir).expanduser()
    with locked(cache_dir, lambda: progress("wait for another process", 0.0)):
        memories = [cache_dir / "sources" / _memory_name(corpus) for corpus in config.corpora]
        sources, changes = zip(*map(fingerprint, files, memories), strict=True)
        tokenizer_path, tokenizer = _tokenizer(config, sources, cache_dir, progress)
        work = _Work(config, cache_dir, tokenizer, tokenizer_path, progress)
        prepared = map(functools.partial(_corpus, work), config.corpora, sources)
        corpora, are_new = zip(*prepared, strict=True)
        for found, memory in zip(sources, memories, strict=True):
            remember(found, memory)
    _check_enough_rows(config, corpora)
    return PreparedData(
        tokenizer_path=tokenizer_path,
        tokenizer_sha256=tokenizer.sha256,
        row_format=work.row_format,
        corpora=corpora,
        data_id=content_id(
            {
                "corpora": [c.id for c in corpora],
                "mixture": make_mixture(config),
                "seed": config.seed,
            }
        ),
        notices=tuple(
            f"corpus {corpus.name!r}: {change}: {'prepared anew' if is_new else 'found in the cache'}"
            for corpus, change, is_new in zip(config.corpora, changes, are_new, strict=True)
            if change
        ),
    )


# --- sources ------------------------------------------------------------------------------------


def _memory_name(corpus: CorpusConfig) -> str:
    return f"{corpus.name}-{content_id(corpus.source)[:16]}.json"


def _source_id(corpus: CorpusConfig, files: list[SourceFile]) -> str:
    """Of the files' content: names and times do not matter, as the order is that of the hashes."""
    contents = sorted((kind_of(Path(f.path)), f.sha256) for f in files)
    return content_id({"contents": contents, "text_field": corpus.text_field})


# --- tokenizer ----------------------------------------------------------------------------------


def _tokenizer(
    config: DataConfig, sources: Sequence[list[SourceFile]], cache_dir: Path, progress: Progress
) -> tuple[Path, Tokenizer]:
    """The model in the cache, trained, or a copy of the one that was given; and where it lies.

    Raises TokenizerError for one that was altered: rows elsewhere in the cache hold its ids, so it
    is not replaced in silence.
    """
    wanted = config.tokenizer
    if wanted.path is not None:
        path = Path(wanted.path).expanduser()
        given_sha256 = load_tokenizer(path, vocab_size=wanted.vocab_size).sha256
        origin: dict[str, Any] = {"format": FORMAT, "given": given_sha256}
    else:
        ids = [_source_id(c, files) for c, files in zip(config.corpora, sources, strict=True)]
        trained = {"config": wanted, "sources": ids, "valid_frac": config.valid_frac}
        origin = {"format": FORMAT, "trained": trained}

    def build(folder: Path) -> dict[str, Any]:
        progress("train tokenizer", 0.0)
        given = wanted.path is not None
        model = path.read_bytes() if given else train_tokenizer(_tokenizer_texts(config), wanted)
        with writing(folder):
            (folder / "tokenizer.model").write_bytes(model)
        progress("train tokenizer", 1.0)
        return origin

    folder = cache_dir / "tokenizers" / content_id(origin)[:16]
    model_path = folder / "tokenizer.model"
    manifest = read_manifest(folder) if model_path.exists() else ensure(folder, cache_dir, build)
    if manifest is None:
        raise TokenizerError(f"{folder}: damaged: delete it and run again")
    sha256 = manifest["contents"][0]["sha256"]
    mend = f"put that one back, or delete {folder} and run again"
    return model_path, load_tokenizer(
        model_path, sha256=sha256, vocab_size=wanted.vocab_size, mend=mend
    )


def _tokenizer_texts(config: DataConfig) -> Iterator[str]:
    """Training documents, the same number of bytes from each corpus."""
    num_bytes = math.ceil(config.tokenizer.train_bytes / len(config.corpora))
    for corpus in config.corpora:
        documents = ((digest_of(doc.text), doc.text) for doc in iter_documents(corpus))
        held_in = (d for d in documents if not is_held_out(d[0], config.valid_frac))
        texts = sample_texts(held_in, num_bytes)
        _check_has_text(corpus, "train", any(texts), config.valid_frac)
        yield from texts


# --- corpora ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is the same for all corpora."""

    config: DataConfig
    cache_dir: Path
    tokenizer: Tokenizer
    tokenizer_path: Path
    progress: Progress

    @property
    def row_format(self) -> RowFormat:
        t = self.tokenizer
        return RowFormat(self.config.seq_len, t.vocab_size, t.separator_id, t.pad_id)


def _corpus(
    work: _Work, corpus: CorpusConfig, files: list[SourceFile]
) -> tuple[PreparedCorpus, bool]:
    """The corpus, and whether its text was not in the cache yet."""
    origin = {
        "format": FORMAT,
        "source": _source_id(corpus, files),
        "tokenizer_sha256": work.tokenizer.sha256,
        "valid_frac": work.config.valid_frac,
    }
    folder = work.cache_dir / "corpora" / f"{corpus.name}-{content_id(origin)[:16]}"
    documents, rows = folder / "documents", folder / f"rows-{work.config.seq_len}"

    def build_both_splits(tmp: Path) -> dict[str, Any]:
        return {**origin, "corpus": corpus, "files": files, **_documents(work, corpus, files, tmp)}

    def build_packed(tmp: Path) -> dict[str, Any]:
        stats = {split: manifest[split] for split in SPLITS}
        report = functools.partial(work.progress, f"pack {corpus.name}")
        packed = build_rows(tmp, documents, stats, work.row_format, report)
        return {**origin, "row_format": work.row_format, **packed}

    is_new = read_manifest(documents) is None
    manifest = ensure(documents, work.cache_dir, build_both_splits)
    packed = ensure(rows, work.cache_dir, build_packed)
    prepared = PreparedCorpus(
        name=corpus.name,
        id=content_id({**origin, "seq_len": work.config.seq_len}),
        folder=rows,
        train=_split(rows, packed["train"]),
        valid=_split(rows, packed["valid"]),
        baselines=manifest["baselines"],
    )
    return prepared, is_new


def _documents(
    work: _Work, corpus: CorpusConfig, files: list[SourceFile], folder: Path
) -> dict[str, Any]:
    stats = build_documents(
        folder,
        iter_documents(corpus),
        work.tokenizer_path,
        valid_frac=work.config.valid_frac,
        num_source_bytes=sum(f.size for f in files),
        report=functools.partial(work.progress, f"tokenise {corpus.name}"),
    )
    for split in SPLITS:
        _check_has_text(corpus, split, stats[split]["bytes"] > 0, work.config.valid_frac)
    baselines = compression_baselines(folder, work.tokenizer, stats["valid"]["bytes"])
    return {**stats, "baselines": baselines}


def _split(folder: Path, entry: dict[str, Any]) -> PreparedSplit:
    return PreparedSplit(**{**entry, "shards": tuple(folder / name for name in entry["shards"])})


def _check_has_text(corpus: CorpusConfig, split: str, has_text: bool, valid_frac: float) -> None:
    if not has_text:
        what = {"train": "training", "valid": "validation"}[split]
        raise DataError(
            f"corpus {corpus.name!r}: the {what} split has no text: whole documents are held out, "
            f"and DataConfig.valid_frac={valid_frac} leaves none for it: change it, or cut the "
            "text into more documents (one .txt file or one .jsonl line each)"
        )


def _check_enough_rows(config: DataConfig, corpora: tuple[PreparedCorpus, ...]) -> None:
    """No batch may need a row twice."""
    shares = zip(*make_mixture(config).shares(), strict=True)
    for corpus, share in zip(corpora, shares, strict=True):
        needed = math.ceil(max(share))
        if corpus.train.rows < needed:
            raise DataError(
                f"corpus {corpus.name!r}: has {corpus.train.rows} training rows of "
                f"{config.seq_len} tokens, but one batch takes {needed}: give more text, or set a "
                "smaller DataConfig.batch_size or DataConfig.seq_len"
            )
