# SPDX-License-Identifier: Apache-2.0
"""A SentencePiece model from text: the same text gives the same bytes.

BPE: arXiv:1508.07909.  Unigram: arXiv:1804.10959.
"""

import heapq
import io
from collections.abc import Iterable, Iterator

import sentencepiece

from jaxlm.core.errors import TokenizerError
from jaxlm.data.config import TokenizerConfig
from jaxlm.data.tokenizer import SPACE_SIGN, UNITS

SEPARATOR = "<doc>"


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """A serialized model of exactly config.vocab_size pieces: <pad>, <doc>, <unk>, 256 bytes, text.

    Raises TokenizerError where the text is too little, or too varied, for that many pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            pad_id=0,
            bos_id=1,
            bos_piece=SEPARATOR,
            unk_id=2,
            eos_id=-1,
            # every byte comes back: see the head of tokenizer.py
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,  # indentation: one piece
            # "self." and "):" become pieces: 5 % more bytes per token on Python's library
            split_by_unicode_script=False,
            max_sentence_length=1 << 16,  # bytes; no unit is longer
            minloglevel=2,  # silent but for errors, which come as exceptions
        )
    except RuntimeError as e:
        reason = str(e).rpartition("] ")[2] or "there is no text"
        raise TokenizerError(
            f"a {config.kind} tokenizer of {config.vocab_size} pieces cannot be trained on this "
            f"text ({reason.strip(' .')}): change TokenizerConfig.vocab_size or give more text"
        ) from e
    return model.getvalue()


def sample_texts(documents: Iterable[tuple[bytes, str]], num_bytes: int) -> list[str]:
    """About `num_bytes` of whole texts, those of the smallest digests: the order does not matter.

    `documents` are (digest, text).  Holds little more than `num_bytes` at a time; a text longer
    than `num_bytes` is cut to as many characters.
    """
    chosen: list[tuple[int, bytes, str]] = []  # a heap whose head has the largest digest
    held = 0
    for digest, whole in documents:
        text = whole[:num_bytes]
        heapq.heappush(chosen, (-int.from_bytes(digest), digest, text))
        held += len(text)
        while held - len(chosen[0][2]) >= num_bytes:
            held -= len(heapq.heappop(chosen)[2])
    return [text for _, _, text in sorted(chosen, reverse=True)]


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """The units that the tokenizer will be given, without newlines, empty ones and space signs."""
    for text in texts:
        for unit in UNITS.findall(text):
            line = unit.rstrip("\n")
            if line and line != SPACE_SIGN:
                yield line
