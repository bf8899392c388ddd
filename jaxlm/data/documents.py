# SPDX-License-Identifier: Apache-2.0
"""Documents, tokenised once: the first layer of the cache.

A folder of whole documents as token ids, one to a record, in the order of the sources, and for each
split `<split>_order.npy`, the records in the order of the documents' sha256: a shuffled order that
depends on the documents alone.  The same sha256 decides which documents are held out.
"""

import array
import collections
import functools
import gzip
import hashlib
import itertools
import lzma
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core.errors import DataError
from jaxlm.data.packing import token_dtype
from jaxlm.data.shards import ShardReader, ShardWriter
from jaxlm.data.source import Document
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer

SPLITS = ("train", "valid")
ALMOST = 0.999  # the most that is reported of a task before its end: 1 says that it ended
_CHUNK_CHARS = 1 << 22  # of text that is encoded at a time
_BYTES_FOR_PROCESSES = 1 << 26  # of text from which more processes pay for their start
_BASELINE_BYTES = 16_000_000  # xz takes a second for each 1.5 MB


class Encoded(NamedTuple):
    """A document as it is stored."""

    digest: bytes  # sha256 of the text
    num_bytes: int  # of the text
    tokens: bytes  # ids in token_dtype


def digest_of(text: str) -> bytes:
    """sha256 of the text: what a document's split and place depend on."""
    return hashlib.sha256(text.encode()).digest()


def is_held_out(digest: bytes, valid_frac: float) -> bool:
    """Whether the document is for validation: true for `valid_frac` of all digests."""
    return int.from_bytes(digest[:8]) < valid_frac * 2**64


def build_documents(
    folder: Path,
    documents: Iterable[Document],
    tokenizer_path: Path,
    *,
    valid_frac: float,
    num_source_bytes: int,
    report: Callable[[float], None],
) -> dict[str, Any]:
    """Writes shards and orders into `folder`; returns {split: {"documents", "bytes", "tokens"}}.

    Raises DataError where a split stays empty.
    """
    tokenizer = load_tokenizer(tokenizer_path)
    itemsize = token_dtype(tokenizer.vocab_size).itemsize
    keys = {split: array.array("Q") for split in SPLITS}  # of 8 bytes: a document's rank
    stats = {split: {"documents": 0, "bytes": 0, "tokens": 0} for split in SPLITS}
    done = 0
    with ShardWriter(folder, "train") as train, ShardWriter(folder, "valid") as valid:
        for doc in encode_documents(documents, tokenizer_path, num_source_bytes):
            split = "valid" if is_held_out(doc.digest, valid_frac) else "train"
            (valid if split == "valid" else train).write(doc.tokens)
            keys[split].append(int.from_bytes(doc.digest[:8]))
            stats[split]["documents"] += 1
            stats[split]["bytes"] += doc.num_bytes
            stats[split]["tokens"] += len(doc.tokens) // itemsize
            done += doc.num_bytes
            report(min(done / num_source_bytes, ALMOST))
    report(1.0)
    for split in SPLITS:
        order = np.argsort(np.asarray(keys[split]), kind="stable")
        np.save(folder / f"{split}_order.npy", order)
    return stats


def read_documents(folder: Path, split: str, vocab_size: int) -> Iterator[np.ndarray]:
    """The split's documents as arrays of ids (n,), in the order of their sha256."""
    order = np.load(folder / f"{split}_order.npy", mmap_mode="r")
    reader = ShardReader(sorted(folder.glob(f"{split}-*.array_record")))
    for begin in range(0, len(order), 256):
        for record in reader.read(order[begin : begin + 256]):
            yield np.frombuffer(record, token_dtype(vocab_size))


def compression_baselines(folder: Path, tokenizer: Tokenizer, num_bytes: int) -> dict[str, float]:
    """Bits per byte of gzip -9 and xz -9 on the validation documents taken together.

    {} where they are longer than 16 MB, or have no text.
    """
    if not 0 < num_bytes <= _BASELINE_BYTES:
        return {}
    documents = read_documents(folder, "valid", tokenizer.vocab_size)
    text = b"".join(tokenizer.decode_bytes(ids.tolist()) for ids in documents)
    packed = {"gzip": gzip.compress(text, 9, mtime=0), "xz": lzma.compress(text, preset=9)}
    return {name: 8 * len(data) / num_bytes for name, data in packed.items()}


def encode_documents(
    documents: Iterable[Document], tokenizer_path: Path, num_source_bytes: int
) -> Iterator[Encoded]:
    """Each document encoded, in order; over all cores where there is much text."""
    chunks = _chunks(documents)
    num_cores = os.cpu_count() or 1
    if num_source_bytes < _BYTES_FOR_PROCESSES:
        encode = functools.partial(_encode_chunk, tokenizer_path, num_cores)
        yield from itertools.chain.from_iterable(map(encode, chunks))
    else:
        encode = functools.partial(_encode_chunk, tokenizer_path, 1)
        # "spawn": a fork of a process that has read ArrayRecord files crashes
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_cores, mp_context=context) as pool:
            try:
                yield from itertools.chain.from_iterable(_ordered_map(pool, encode, chunks))
            except BrokenProcessPool as e:
                raise DataError(
                    "a process that tokenises died: out of memory, or started from a script "
                    "without if __name__ == '__main__'"
                ) from e


def _ordered_map(
    pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int = 64
) -> Iterator[Any]:
    """pool.map that takes no more than `ahead` items before their results are used."""
    pending: collections.deque = collections.deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _chunks(documents: Iterable[Document]) -> Iterator[list[str]]:
    chunk: list[str] = []
    room = _CHUNK_CHARS
    for document in documents:
        chunk.append(document.text)
        room -= len(document.text) + 64  # empty documents take room too
        if room <= 0:
            yield chunk
            chunk, room = [], _CHUNK_CHARS
    if chunk:
        yield chunk


def _encode_chunk(tokenizer_path: Path, num_threads: int, texts: list[str]) -> list[Encoded]:
    tokenizer = _loaded(tokenizer_path)
    dtype = token_dtype(tokenizer.vocab_size)
    return [
        Encoded(digest_of(text), len(text.encode()), np.array(ids, dtype).tobytes())
        for text, ids in zip(texts, tokenizer.encode_batch(texts, num_threads), strict=True)
    ]


@functools.lru_cache(maxsize=1)
def _loaded(tokenizer_path: Path) -> Tokenizer:
    """Loaded once in each process, not once for each chunk."""
    return load_tokenizer(tokenizer_path)
