# SPDX-License-Identifier: Apache-2.0
"""Bytes to token ids and back, exactly, by a SentencePiece model (arXiv:1808.06226).

Text is cut into units before SentencePiece sees it: lines with their newline, and the characters
that SentencePiece cannot give back (its space sign U+2581, and bytes that are not UTF-8), which
become byte pieces.  So every byte sequence round-trips, equal lines are encoded once, and no line
is long enough to be slow.

V vocabulary.
"""

import codecs
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from jaxlm.core.errors import TokenizerError

SPACE_SIGN = "\u2581"  # how SentencePiece writes a space inside a piece
_SURROGATES = "\ud800-\udfff"  # how Python's "surrogateescape" writes a byte that is not UTF-8
UNITS = re.compile(f"[^\n{SPACE_SIGN}{_SURROGATES}]{{1,8192}}\n?|[\n{SPACE_SIGN}{_SURROGATES}]")
# What a model must give back to be usable: normalised, added or dropped characters show here.
_PROBE = "  \ufb01ne  \uff21 <doc>\t</s> e\u0301\u00e9 \U0001f642 <0x41> ?\u2581.\r\n\n x \x00"


class Tokenizer:
    """Encodes and decodes; immutable.

    Attributes: `vocab_size`; `separator_id`, the piece before and after every document; `pad_id`;
    `bytes_per_token_V` int32, the number of text bytes that each id stands for (0 for the special
    pieces); `sha256` of the model file.
    """

    def __init__(self, model: bytes, name: str) -> None:
        """`model` is a serialized SentencePiece model, `name` stands for it in messages.

        Raises TokenizerError where it is damaged, lacks byte or separator pieces, or alters text.
        """
        try:
            sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as e:
            raise TokenizerError(
                f"{name}: damaged, or no SentencePiece model: make it again"
            ) from e
        self._sp = sp
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = sp.vocab_size()
        self.separator_id: int = sp.bos_id() if sp.bos_id() >= 0 else sp.eos_id()
        self.pad_id: int = sp.pad_id() if sp.pad_id() >= 0 else sp.unk_id()
        self._bytes_V = tuple(_piece_bytes(sp, i) for i in range(self.vocab_size))
        self.bytes_per_token_V = np.array([len(b) for b in self._bytes_V], np.int32)
        self._byte_ids = {self._bytes_V[i][0]: i for i in range(self.vocab_size) if sp.is_byte(i)}
        if len(self._byte_ids) != 256:
            raise TokenizerError(f"{name}: has no byte pieces: train it with byte_fallback")
        if self.separator_id < 0:
            raise TokenizerError(
                f"{name}: has no piece to separate documents: train it with bos_id"
            )
        if self.decode_bytes(self.encode(_PROBE)) != _PROBE.encode():
            raise TokenizerError(
                f"{name}: does not give text back exactly: train it with add_dummy_prefix=False, "
                "remove_extra_whitespaces=False and normalization_rule_name=identity"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without separators."""
        return self.encode_batch([text])[0]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes, UTF-8 or not."""
        return self.encode(data.decode("utf-8", "surrogateescape"))

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Ids of each text; distinct lines are encoded once, by SentencePiece's own threads."""
        units = [UNITS.findall(text) for text in texts]
        distinct = set(itertools.chain.from_iterable(units))
        table = {unit: self._byte_pieces(unit) for unit in distinct if _is_special(unit)}
        plain = list(distinct.difference(table))
        table.update(zip(plain, self._sp.encode(plain, num_threads=num_threads), strict=True))
        return [list(itertools.chain.from_iterable(map(table.__getitem__, u))) for u in units]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for; special pieces stand for none."""
        return b"".join(map(self._bytes_V.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def _byte_pieces(self, unit: str) -> list[int]:
        return [self._byte_ids[b] for b in unit.encode("utf-8", "surrogateescape")]


class StreamDecoder:
    """Turns ids into text one by one, holding bytes back until they are whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this id completes: often one or more, sometimes none."""
        return self._utf8.decode(self._tokenizer.decode_bytes([token_id]))

    def flush(self) -> str:
        """What is still held back, as U+FFFD."""
        return self._utf8.decode(b"", final=True)


def load_tokenizer(
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    vocab_size: int | None = None,
    mend: str = "put that one back",
) -> Tokenizer:
    """The model file at `path`, checked against the sha256 and the vocabulary size if given.

    `mend` is what the user can do about a file of another sha256.
    Raises TokenizerError where the file is missing, damaged, or not the one expected.
    """
    try:
        model = Path(path).expanduser().read_bytes()
    except OSError as e:
        reason = f"cannot be read ({e.strerror})"
        raise TokenizerError(f"tokenizer {path}: {reason}: put it back, or check the path") from e
    got = hashlib.sha256(model).hexdigest()
    if sha256 is not None and got != sha256:
        raise TokenizerError(
            f"tokenizer {path}: not the one that the data was made with "
            f"(sha256 {got[:12]}, expected {sha256[:12]}): {mend}"
        )
    tokenizer = Tokenizer(model, f"tokenizer {path}")
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise TokenizerError(
            f"tokenizer {path}: has {tokenizer.vocab_size} pieces, but TokenizerConfig.vocab_size "
            f"is {vocab_size}: set it to {tokenizer.vocab_size}"
        )
    return tokenizer


def _piece_bytes(sp: sentencepiece.SentencePieceProcessor, i: int) -> bytes:
    if sp.is_control(i) or sp.is_unknown(i):
        return b""
    piece = sp.id_to_piece(i)
    return (
        bytes([int(piece[3:5], 16)]) if sp.is_byte(i) else piece.replace(SPACE_SIGN, " ").encode()
    )


def _is_special(unit: str) -> bool:
    return unit == SPACE_SIGN or "\ud800" <= unit <= "\udfff"
