"""Words of texts, and the tokens that they are made of, for every kind of vocabulary."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors

from runtime.scoring.words import Vocabulary, assign_tokens, find_spans, split_words, vocabulary
from tests.conftest import DEMO, shared_data
from tests.support.vocabularies import KINDS

TEXT = "¿Dónde está  el niño?\nthe ñ 😀x 鼠"


class _Model:
    """As much of a model as words need."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int = 0) -> None:
        self.tokenizer = tokenizer
        self.has_tokenizer = True
        self.config = SimpleNamespace(vocab_size=tokenizer.get_vocab_size() + 3, eos_token_ids=frozenset({eos_id}))


def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    model: Any = _Model(tokenizer)
    return vocabulary(model)


def _spans(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return find_spans(text, encoding.ids, encoding.offsets, _vocabulary(tokenizer).beginnings)


@pytest.mark.parametrize(
    ("words", "spans"),
    [
        (None, [(0, 2), (4, 9), (10, 15)]),
        (["It", "isn't", "here."], [(0, 2), (4, 9), (10, 15)]),
        (["It", "is", "n't", "here", "."], [(0, 2), (4, 6), (6, 9), (10, 14), (14, 15)]),
        (["It  isn't", "here."], [(0, 9), (10, 15)]),
    ],
)
def test_words_of_a_text(words: list[str] | None, spans: list[tuple[int, int]]) -> None:
    assert split_words("It  isn't here.\n", words) == spans


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["It", "wasn't"], 'word 2 of the list is "wasn\'t", but the text goes on with "isn\'t here." at character 3'),
        (["It", "isn't"], "ends after 2 words, but the text goes on with 'here.' at character 9"),
        (["It", "isn't", "here.", "now"], "word 4 of the list is 'now', but the text has ended"),
        ([], 'ends after 0 words, but the text goes on with "It isn\'t here." at character 0'),
        (["It", " isn't"], 'word 2 of the list is " isn\'t"'),
    ],
)
def test_the_first_word_that_does_not_align_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(".", r"\.")):
        split_words("It isn't here.", words)


@pytest.mark.parametrize("word", ["", " ", 5, None])
def test_a_word_is_a_text(word: Any) -> None:
    with pytest.raises(TypeError, match=r"word 2 is .* not blank"):
        split_words("It is", ["It", word])


@given(st.text("ab é\n　", max_size=30))
def test_words_are_what_white_space_separates(text: str) -> None:
    spans = split_words(text)
    assert [text[slice(*span)] for span in spans] == text.split()
    assert split_words(text, text.split()) == spans


def test_tokens_of_words() -> None:
    """White space belongs to the word after it, and after the last word to none."""
    text = " The  fox ran. "
    tokens = [(0, 1), (1, 4), (4, 5), (5, 9), (9, 11), (11, 13), (13, 14), (14, 15)]
    assert assign_tokens(text, tokens, split_words(text)) == [(0, 2), (2, 4), (4, 7)]
    words = split_words(text, ["The", "fox", "ran", "."])
    assert assign_tokens(text, tokens, words) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert assign_tokens(text, [(1, 4), (9, 13)], words) == [(0, 1), (1, 1), (1, 2), (2, 2)]


def test_a_token_of_two_words_is_refused() -> None:
    text = "I don't"
    with pytest.raises(ValueError, match="the token ' don' is part of two words, 'do' and \"n't\""):
        assign_tokens(text, [(0, 1), (1, 5), (5, 7)], split_words(text, ["I", "do", "n't"]))


@pytest.mark.parametrize("kind", KINDS)
def test_spans_of_every_kind_of_vocabulary(kind: str) -> None:
    """In order, inside the text, and together all that the tokenizer reads."""
    tokenizer = KINDS[kind]()
    text = "e2e4 e7e5" if kind == "words" else "ALGA\nLE" if kind == "residues" else TEXT
    spans = _spans(tokenizer, text)
    assert all(0 <= begin <= end <= len(text) for begin, end in spans)
    assert all(one[0] <= other[0] and one[1] <= other[1] for one, other in itertools.pairwise(spans))
    covered = {at for span in spans for at in range(*span)}
    assert {at for at, letter in enumerate(text) if not letter.isspace()} <= covered
    words = split_words(text)
    of_words = assign_tokens(text, spans, words)
    for (begin, end), (first, last) in zip(words, of_words, strict=True):
        inside = {at for span in spans[first:last] for at in range(*span)}
        assert set(range(begin, end)) <= inside
    assert [first for first, _ in of_words[1:]] == [last for _, last in of_words[:-1]]


@pytest.mark.parametrize("path", [DEMO / "tokenizer.json", None], ids=["demo", "gpt2"])
def test_spans_of_gpt2s_tokenizer(path: Any) -> None:
    tokenizer = Tokenizer.from_file(str(path or shared_data("tokenizer") / "tokenizer.json"))
    for text in (TEXT, "the ñ 😀x é  fox", " a"):
        spans = _spans(tokenizer, text)
        for id_, span in zip(tokenizer.encode(text).ids, spans, strict=True):
            if "�" not in tokenizer.decode([id_]):
                assert tokenizer.decode([id_]) == text[slice(*span)]
        assert spans[0][0] == 0
        assert spans[-1][1] == len(text)
        assert all(other[0] <= one[1] for one, other in itertools.pairwise(spans))  # without a gap
    assert [TEXT[slice(*span)] for span in _spans(tokenizer, TEXT)][:2] == ["¿", "¿"]


def test_a_space_that_offsets_leave_out_is_part_of_its_token() -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    expected = _spans(tokenizer, "The old king  ran")
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert tokenizer.encode("The old king  ran").offsets != expected
    assert _spans(tokenizer, "The old king  ran") == expected


def test_a_space_that_the_tokenizer_adds_has_no_characters() -> None:
    assert _spans(KINDS["metaspace"](), "ab c") == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4)]
    tokenizer = KINDS["metaspace"]()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    assert _spans(tokenizer, "ab c") == [(0, 1), (1, 2), (2, 3), (3, 4)]


@pytest.mark.parametrize(
    ("kind", "beginning", "continuing"),
    [
        # "!" is id 0, the end of text here; an added token is its own letters
        ("byte-level", ["Ġ", "Ċ", "ĉ", "!"], ["a", "Ã", "<|user|>", "Ġgap"]),
        ("byte-fallback", ["▁", "<0x20>", "<0x0A>", "<unk>"], ["a", "<0xC3>", "</s>"]),
        ("metaspace", ["▁", "▁the", "▁안", "<unk>"], ["the", "안", "<s>"]),
        ("word pieces", ["a", "鼠", ".", "[PAD]"], ["##a", "[CLS]", "[UNK]"]),
        ("residues", ["Ċ", "<|endoftext|>"], ["A", "AL"]),
    ],
)
def test_tokens_that_begin_a_word(kind: str, beginning: list[str], continuing: list[str]) -> None:
    tokenizer = KINDS[kind]()
    found = _vocabulary(tokenizer).beginnings
    assert found is not None
    assert len(found.mask) == tokenizer.get_vocab_size() + 3
    assert [token for token in beginning if not found.mask[tokenizer.token_to_id(token)]] == []
    assert [token for token in continuing if found.mask[tokenizer.token_to_id(token)]] == []
    assert found.hold_space == (kind != "word pieces")


@pytest.mark.parametrize("kind", ["word endings", "words"])
def test_vocabularies_whose_tokens_end_words_themselves(kind: str) -> None:
    assert _vocabulary(KINDS[kind]()).beginnings is None


def test_texts_of_tokens() -> None:
    texts = _vocabulary(KINDS["byte-level"]()).texts
    tokenizer = KINDS["byte-level"]()
    shown = {token: texts[tokenizer.token_to_id(token)] for token in ("Ġ", "a", "Ã", "[niño]", "<|user|>")}
    assert shown == {"Ġ": " ", "a": "a", "Ã": "�", "[niño]": "[niño]", "<|user|>": "<|user|>"}
    texts = _vocabulary(KINDS["metaspace"]()).texts
    assert texts[KINDS["metaspace"]().token_to_id("▁the")] == " the"
