"""Ids to text and to pieces of it, for every kind of vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import GPT2Tokenizer
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from runtime.generation.streaming import TextStream
from runtime.model.tokenizer.detokenizer import Detokenizer, PieceDecoder
from tests.support.vocabularies import KINDS, byte_fallback, byte_level, metaspace

calm = settings(deadline=None, max_examples=60)
TOKENIZERS = {name: make() for name, make in KINDS.items()}
# of the vocabulary, half of them the likes of which decoders treat in their own way, and some beyond it
IDS = st.lists(st.integers(0, 20) | st.integers(0, 300), max_size=30)


def pieces_of(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None, **how: Any) -> list[str]:
    decoder = PieceDecoder(tokenizer, context or [], **how)
    return [*map(decoder.push, ids), decoder.flush()]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "byte-level"])
@pytest.mark.parametrize("skip", [True, False], ids=["hidden", "written"])
@calm
@given(ids=IDS)
def test_pieces_join_to_the_tokenizers_decode_of_all_ids(kind: str, skip: bool, ids: list[int]) -> None:
    tokenizer = TOKENIZERS[kind]
    assert "".join(pieces_of(tokenizer, ids, skip_special_tokens=skip)) == tokenizer.decode(ids, skip)
    assert Detokenizer(tokenizer, skip_special_tokens=skip).decode(ids) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("kind", KINDS)
@calm
@given(context=IDS, ids=IDS)
def test_pieces_after_a_context_are_what_it_adds_to_the_text(kind: str, context: list[int], ids: list[int]) -> None:
    """As transformers' pipeline cuts the prompt off; a context that ends inside a character has no such cut."""
    detokenizer = Detokenizer(TOKENIZERS[kind])
    before = detokenizer.decode(context)
    if before.endswith("\ufffd"):
        return
    expected = detokenizer.decode([*context, *ids])[len(before) :]
    assert "".join(pieces_of(TOKENIZERS[kind], ids, context)) == expected


SENTENCES = ["안녕", "안녕하", "hi 😀😀 there", "中文很好", "a é b", "привет", "👩‍👩‍👧", "  two   spaces ", "ñ", "\n"]


@pytest.mark.parametrize("text", SENTENCES)
def test_byte_tokens_come_back_as_their_text_wherever_the_ids_end(text: str) -> None:
    tokenizer = byte_fallback()
    ids = tokenizer.encode(text).ids
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids) == text
    for n in range(len(ids)):
        assert "".join(pieces_of(tokenizer, ids[:n])) == tokenizer.decode(ids[:n])
        before = tokenizer.decode(ids[:n])
        if not before.endswith("\ufffd"):  # a prompt ends with a whole character
            assert before + "".join(pieces_of(tokenizer, ids[n:], ids[:n])) == text


def test_a_run_of_byte_tokens_shows_when_it_ends_and_words_at_once() -> None:
    tokenizer = byte_fallback()
    assert pieces_of(tokenizer, tokenizer.encode("hi 안녕 you").ids) == [
        "", "h", "i", " ", "", "", "", "", "", "", "안녕 ", "y", "o", "u", "",
    ]  # fmt: skip


WORDS = ["[niño]", "special token", "日本", "Ġgap", "Word"]


@pytest.mark.parametrize("word", WORDS)
def test_an_added_token_is_its_own_text(word: str, tmp_path: Any) -> None:
    """As transformers' slow GPT2Tokenizer has it; tokenizers' decoder takes letters beyond ASCII for bytes."""
    tokenizer, text = byte_level(), f"a {word} b"
    ids = tokenizer.encode(text).ids
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    theirs = GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    theirs.encoder = {word: id_ for word, id_ in tokenizer.get_vocab().items() if id_ < 257}
    theirs.decoder = {id_: word for word, id_ in theirs.encoder.items()}
    theirs.add_tokens(WORDS)
    assert theirs.decode(theirs.encode(text), spaces_between_special_tokens=False) == text
    assert "".join(pieces_of(tokenizer, ids)) == Detokenizer(tokenizer).decode(ids) == text


@calm
@given(ids=IDS)
@example(ids=[*"ñ".encode()])
def test_pieces_of_bytes_and_added_tokens_join_to_the_text(ids: list[int]) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    parts: list[bytes] = []
    for id_ in ids:
        if tokenizer.id_to_token(id_) is None or id_ in special:
            continue
        added = tokenizer.get_added_tokens_decoder().get(id_)
        parts.append(added.content.encode() if added else bytes_of(tokenizer, id_))
    assert "".join(pieces_of(tokenizer, ids)) == b"".join(parts).decode(errors="replace")


def bytes_of(tokenizer: Tokenizer, id_: int) -> bytes:
    by_letter = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return bytes(by_letter[letter] for letter in tokenizer.id_to_token(id_))


def test_ids_that_the_tokenizer_does_not_have_are_no_text() -> None:
    tokenizer = metaspace()
    the = tokenizer.token_to_id("▁the")
    assert pieces_of(tokenizer, [10_000, the, 10_000, the]) == ["", "the", "", " the", ""]


def test_a_decoder_that_strips_more_than_a_space_is_given_its_due() -> None:
    tokenizer = Tokenizer(models.WordLevel({" ": 0, "a": 1}))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 9, 0)])
    ids = [1] + [0] * 7 + [1] + [0] * 12 + [1]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def written(ids: list[int], *stops: str) -> tuple[str, bool]:
    """What a continuation of these ids shows, and whether a stop string ended it."""
    writer, shown = TextStream(TOKENIZERS["byte-level"], (), stops), ""
    for id_ in ids:
        shown += writer.push(id_)
        if writer.stopped:
            return shown, True
    shown += writer.flush()
    return shown, writer.stopped


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("Hi.<|end|>User: and", ["<|end|>"], "Hi."),
        ("Hi.<|end|>User: and", [".<|end|>"], "Hi"),
        ("Hi.<|end|>User: and", ["<|end|>User"], "Hi."),
        ("Hi.<|end|>User: and", [".<|end|>User:", "and"], "Hi"),
        ("Hi.<|end|>User: and", [".User"], "Hi"),  # in the text that is shown
        ("Hi.<|end|>User: and", ["end|>"], "Hi."),
        ("Hi.<|end|><|user|>", ["<|user|>", "never"], "Hi."),
        ("Hi.<|end|>User", ["<|end|>Bot", "never"], None),
        ("Hi.<|end|>User", ["<|user|>"], None),
        ("日<|end|>", ["<|end|>"], "日"),
    ],
)
def test_a_stop_string_may_have_special_tokens_in_it(text: str, stops: list[str], expected: str | None) -> None:
    ids = TOKENIZERS["byte-level"].encode(text).ids
    whole = Detokenizer(TOKENIZERS["byte-level"]).decode(ids)
    assert written(ids, *stops) == ((whole, False) if expected is None else (expected, True))


def test_what_is_unfinished_before_a_special_stop_string_is_shown() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("月").ids
    end = tokenizer.token_to_id("<|end|>")
    assert written([*ids[:2], end], "<|end|>") == ("\ufffd", True)
    assert written([*ids[:2], end, ids[2]], "never") == ("月", False)
