# SPDX-License-Identifier: Apache-2.0
"""Bytes survive the round trip, whatever they are; damaged and wrong models are refused."""

import hashlib
import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jaxlm.core.errors import TokenizerError
from jaxlm.data.config import TokenizerConfig
from jaxlm.data.tokenizer import StreamDecoder, Tokenizer, load_tokenizer
from jaxlm.data.tokenizer_training import sample_texts, train_tokenizer
from tests.jaxlm.data.corpora import VOCAB_SIZE, make_texts

ODD = ["", "\n", "\n\n", "\u2581", " \u2581 ", "<0x41>", "<doc>", "</s>", "<unk>", "<pad>", "\x00"]
ODD += ["a\x00b", "\t \t", "\r\n", "   x   ", "\ufeffa", "\u2585", " \u2047 ", "\ufb01\uff21"]
fragments = st.one_of(st.sampled_from([o.encode() for o in ODD]), st.binary(max_size=8))
any_bytes = st.lists(fragments, max_size=12).map(b"".join)
# the tokenizer is immutable, so that examples may share it
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@shared
@given(data=any_bytes)
@example(data=b"\xe2\x96")  # the head of U+2581, alone
@example(data=b"\xed\xa0\x80")  # a surrogate
def test_every_byte_sequence_round_trips(tokenizer: Tokenizer, data: bytes) -> None:
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data
    assert not {tokenizer.separator_id, tokenizer.pad_id}.intersection(ids)
    assert int(tokenizer.bytes_per_token_V[np.array(ids, int)].sum()) == len(data)


@shared
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_streamed_text_equals_decoded_text_and_comes_as_early_as_it_can(
    tokenizer: Tokenizer, text: str
) -> None:
    stream, seen, so_far = StreamDecoder(tokenizer), "", b""
    for token_id in tokenizer.encode(text):
        seen += stream.push(token_id)
        so_far += tokenizer.decode_bytes([token_id])
        assert seen == so_far.decode("utf-8", "ignore")  # all whole characters, no half one
    assert seen + stream.flush() == text


def test_stream_ends_in_the_replacement_character_where_a_character_is_cut(
    tokenizer: Tokenizer,
) -> None:
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.push, tokenizer.encode_bytes(b"a\xf0\x9f"))) == "a"
    assert stream.flush() == "\ufffd"


def test_batch_equals_one_by_one_and_lines_are_independent(tokenizer: Tokenizer) -> None:
    texts = make_texts(5, 40) + ODD
    batch = tokenizer.encode_batch(texts)
    assert batch == [tokenizer.encode(text) for text in texts]
    parts = [tokenizer.encode(line) for line in texts[3].splitlines(keepends=True)]
    assert list(itertools.chain(*parts)) == batch[3]
    assert tokenizer.encode_batch([]) == []


def test_ids_are_those_of_sentencepiece_itself_on_plain_lines() -> None:
    model = train_tokenizer(make_texts(0, 200), TokenizerConfig(vocab_size=VOCAB_SIZE))
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    line = "def return  self.x <doc> é abcd\n"
    assert Tokenizer(model, "m").encode(line) == reference.encode(line)


def test_long_line_is_encoded_whole(tokenizer: Tokenizer) -> None:
    text = "ab " * 20_000 + "é"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_table_has_no_bytes_for_special_pieces_and_one_for_each_byte(tokenizer: Tokenizer) -> None:
    table = tokenizer.bytes_per_token_V
    assert table.dtype == np.int32
    assert table.shape == (tokenizer.vocab_size,) == (VOCAB_SIZE,)
    assert (table == 0).sum() == 3  # <pad>, <doc>, <unk>
    assert table[tokenizer.separator_id] == table[tokenizer.pad_id] == 0
    assert tokenizer.separator_id != tokenizer.pad_id


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_gives_the_same_bytes_in_another_process_and_prints_nothing(kind: str) -> None:
    code = (
        "import hashlib; from tests.jaxlm.data.corpora import make_texts;"
        "from jaxlm.data.config import TokenizerConfig as C;"
        "from jaxlm.data.tokenizer_training import train_tokenizer as t;"
        f"m = t(make_texts(0, 200), C(vocab_size=320, kind={kind!r}));"
        "print(hashlib.sha256(m).hexdigest(), end='')"
    )
    run = [sys.executable, "-c", code]
    root = Path(__file__).parents[3]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=root)
    model = train_tokenizer(make_texts(0, 200), TokenizerConfig(vocab_size=320, kind=kind))
    assert done.stdout == hashlib.sha256(model).hexdigest()
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_indentation_is_one_piece(kind: str) -> None:
    words = " ".join(make_texts(0, 200)).split()
    lines = "".join(f"{'    ' * (i % 3)}{word}\n" for i, word in enumerate(words))
    tokenizer = Tokenizer(train_tokenizer([lines], TokenizerConfig(vocab_size=330, kind=kind)), "m")
    assert len(tokenizer.encode("    ")) == len(tokenizer.encode("        ")) == 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_little_text_for_the_vocabulary_is_one_line(kind: str) -> None:
    for texts in (["a few words only"], [], ["\n", ""]):
        with pytest.raises(TokenizerError, match=r"5000 pieces cannot be trained.*\)") as caught:
            train_tokenizer(texts, TokenizerConfig(vocab_size=5000, kind=kind))
        assert "\n" not in str(caught.value)


def test_sample_is_independent_of_the_order_and_holds_what_was_asked() -> None:
    documents = [(hashlib.sha256(t.encode()).digest(), t) for t in make_texts(7, 100)]
    size = sum(len(text) for _, text in documents)
    sample = sample_texts(documents, size // 3)
    assert sample == sample_texts(reversed(documents), size // 3)
    assert size // 3 <= sum(map(len, sample)) <= size // 3 + 3000
    assert sorted(sample_texts(documents, 10 * size)) == sorted(t for _, t in documents)
    assert sample_texts([(b"x", "abcdef")], 4) == ["abcd"]


def test_missing_truncated_garbled_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.model"
    model = train_tokenizer(make_texts(0, 200), TokenizerConfig(vocab_size=VOCAB_SIZE))
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(path)
    for damaged in (model[: len(model) // 2], b"garbage" * 50, b""):
        path.write_bytes(damaged)
        with pytest.raises(TokenizerError, match=r"damaged|no byte pieces"):
            load_tokenizer(path)
    path.write_bytes(model)
    sha256 = hashlib.sha256(model).hexdigest()
    assert load_tokenizer(path, sha256=sha256, vocab_size=VOCAB_SIZE).sha256 == sha256
    with pytest.raises(TokenizerError, match="not the one that the data was made with"):
        load_tokenizer(path, sha256="0" * 64)
    with pytest.raises(TokenizerError, match=r"has 320 pieces, but .* is 512"):
        load_tokenizer(path, vocab_size=512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"byte_fallback": False}, "has no byte pieces"),
        ({"bos_id": -1, "eos_id": -1}, "no piece to separate documents"),
        ({"add_dummy_prefix": True}, "does not give text back exactly"),
        ({"remove_extra_whitespaces": True}, "does not give text back exactly"),
        ({"normalization_rule_name": "nmt_nfkc"}, "does not give text back exactly"),
    ],
)
def test_models_that_cannot_give_text_back_are_refused(options: dict, message: str) -> None:
    model = io.BytesIO()
    exact = {"byte_fallback": True, "normalization_rule_name": "identity"}
    exact |= {"add_dummy_prefix": False, "remove_extra_whitespaces": False}
    lines = [line for text in make_texts(0, 200) for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        model_type="bpe",
        minloglevel=2,
        **{**exact, **options},
    )
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(model.getvalue(), "m")
