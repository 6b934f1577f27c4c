"""Text to ids, ids to pieces of text, and stop strings."""

from __future__ import annotations

import codecs
import functools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import GPT2TokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from runtime.model.model import Model
from runtime.model.tokenizer.detokenizer import PieceDecoder
from runtime.tokenization.encode import encode, encode_prompt
from runtime.tokenization.stop_strings import StopFilter
from tests.conftest import DEMO, shared_data
from tests.support.vocabularies import model_of

calm = settings(deadline=None)  # time is not what these test
REPLACEMENT = "\ufffd"
TOKENIZER = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
BYTE_IDS = {byte: TOKENIZER.token_to_id(token) for byte, token in bytes_to_unicode().items()}
N_VOCAB = TOKENIZER.get_vocab_size()
ANY_IDS = st.lists(st.sampled_from(sorted(BYTE_IDS.values())) | st.integers(0, N_VOCAB - 1), max_size=40)


def byte_ids(text: bytes) -> list[int]:
    """One id a byte, whatever the merges."""
    return [BYTE_IDS[byte] for byte in text]


def pieces_of(ids: list[int], context: list[int] | None = None) -> list[str]:
    """What each id completes, and last what is left at the end."""
    decoder = PieceDecoder(TOKENIZER, context or [])
    return [*map(decoder.push, ids), decoder.flush()]


# encoding ----------------------------------------------------------------------------------------------------------


@functools.cache
def openai_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(shared_data("tokenizer") / "tokenizer.json"))


def openai_encode(text: str) -> list[int]:
    return encode(model_of(openai_tokenizer()), text)


def recorded(name: str) -> Any:
    return json.loads((shared_data("tokenizer_vectors") / name).read_text(encoding="utf-8"))


def test_ids_are_those_that_tiktoken_and_gpt3_encoder_record() -> None:
    cases = [case for case in recorded("inline_tiktoken_gpt3encoder.json") if not case.get("allow_special")]
    assert len(cases) == 25
    assert [openai_encode(case["text"]) for case in cases] == [case["ids"] for case in cases]


def test_ids_are_those_that_transformersjs_records() -> None:
    cases = [case for case in recorded("transformersjs_gpt2.json")["cases"] if "<|" not in case["text"]]
    assert len(cases) > 20
    assert [openai_encode(case["text"]) for case in cases] == [case["ids"] for case in cases]


def test_ids_are_those_that_llamacpp_records() -> None:
    folder = shared_data("tokenizer_vectors")
    texts = (folder / "ggml-vocab-gpt-2.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (folder / "ggml-vocab-gpt-2.gguf.out").read_text().splitlines()
    pairs = list(zip(texts, lines, strict=False))
    assert len(pairs) > 40
    assert [openai_encode(text) for text, _ in pairs] == [list(map(int, line.split())) for _, line in pairs]


@functools.cache
def transformers_tokenizer() -> Any:
    return GPT2TokenizerFast.from_pretrained(DEMO)


@calm
@given(text=st.text().filter(lambda text: "<|endoftext|>" not in text))
@example(text="¿Qué tal? 🙂👩‍👩‍👧 中文 ñ\r\n\t  end  ")
def test_encode_agrees_with_transformers_and_decodes_back(text: str) -> None:
    ids = encode(model_of(TOKENIZER), text)
    assert ids == transformers_tokenizer()(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("text", ["<|endoftext|>", "a <|endoftext|> b", "<|endoftext|>" * 3])
def test_a_special_token_in_a_text_is_text(demo_fp32: Model, text: str) -> None:
    ids = encode(demo_fp32, text)
    assert demo_fp32.config.bos_token_id not in ids
    assert demo_fp32.tokenizer.decode(ids) == text


def test_a_special_token_is_a_token_when_asked_for(demo_fp32: Model) -> None:
    ids = encode(demo_fp32, "a<|endoftext|>b", special_tokens=True)
    assert ids == [*encode(demo_fp32, "a"), demo_fp32.config.bos_token_id, *encode(demo_fp32, "b")]


def test_only_an_empty_prompt_begins_with_bos(demo_fp32: Model) -> None:
    assert encode(demo_fp32, "") == []
    assert encode_prompt(demo_fp32, "") == [demo_fp32.config.bos_token_id]
    assert encode_prompt(demo_fp32, "Once") == encode(demo_fp32, "Once")


@pytest.mark.parametrize("wrong", [None, b"Once", 5, ["Once"]], ids=repr)
def test_what_is_no_text_is_a_type_error_naming_what_it_is(demo_fp32: Model, wrong: Any) -> None:
    with pytest.raises(TypeError, match=type(wrong).__name__):
        encode(demo_fp32, wrong)


def test_a_lone_surrogate_is_a_value_error_saying_where(demo_fp32: Model) -> None:
    with pytest.raises(ValueError, match=r"surrogate.* 3\b"):
        encode(demo_fp32, "abc\ud800d")


# pieces ------------------------------------------------------------------------------------------------------------


@calm
@given(ids=ANY_IDS, context=ANY_IDS)
@example(ids=byte_ids("🙂".encode()[:3]), context=[])
@example(ids=[*byte_ids("🙂".encode()), *byte_ids(b"\x80\x80\x80\x80\xf0\x9f"), 40, 41], context=[])
@example(ids=byte_ids(REPLACEMENT.encode()) * 3, context=[])
@example(ids=[0, *byte_ids(b"\xc3"), 0, *byte_ids(b"\xb1"), 0], context=[])
def test_pieces_join_to_the_decoded_ids(ids: list[int], context: list[int]) -> None:
    assert "".join(pieces_of(ids)) == TOKENIZER.decode(ids)
    # a prompt is text, so it ends with a whole character: the pieces are what follows it
    context = encode(model_of(TOKENIZER), TOKENIZER.decode(context))
    before = TOKENIZER.decode(context)
    assert before + "".join(pieces_of(ids, context)) == TOKENIZER.decode([*context, *ids])


@calm
@given(ids=ANY_IDS)
def test_no_piece_but_the_last_ends_inside_a_character(ids: list[int]) -> None:
    assert not any(piece.endswith(REPLACEMENT) for piece in pieces_of(ids)[:-1])


@calm
@given(text=st.text(st.characters(exclude_characters=REPLACEMENT, exclude_categories=["Cs"]), max_size=20))
@example(text="¿Qué tal? 🙂👩‍👩‍👧 中文 ñ")
def test_a_character_shows_with_its_last_byte(text: str) -> None:
    decode = codecs.getincrementaldecoder("utf-8")()
    assert pieces_of(byte_ids(text.encode())) == [*(decode.decode(bytes([b])) for b in text.encode()), ""]


def test_a_decoder_that_looks_at_neighbours_sees_the_context() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "s": 2}))
    tokenizer.decoder = decoders.Metaspace()  # drops the space of the first word it sees
    decoder = PieceDecoder(tokenizer, [0])
    assert [decoder.push(id_) for id_ in (1, 2, 0, 1)] == [" two", "s", " one", " two"]


@pytest.mark.parametrize("rest", [b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x99", b"\xff\xfe", b"\xe4\xb8\xe4\xb8"], ids=repr)
def test_unfinished_bytes_at_the_end_come_as_the_tokenizer_shows_them(rest: bytes) -> None:
    ids = byte_ids(b"ab" + rest)
    *pieces, last = pieces_of(ids)
    assert "".join(pieces) == "ab"
    assert last == TOKENIZER.decode(ids)[2:]
    assert set(last) == {REPLACEMENT}


# stop strings ------------------------------------------------------------------------------------------------------


def cut(pieces: list[str], stops: list[str]) -> str:
    """All that a filter lets through."""
    stop_filter = StopFilter(tuple(stops))
    shown = ""
    for piece in pieces:
        shown += stop_filter.push(piece)
        if stop_filter.stopped:
            return shown
    return shown + stop_filter.flush()


def cut_whole(text: str, stops: list[str]) -> str:
    """The reference: before the stop string that is complete first; of those complete at once, the longest."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["one. T", "wo"], [". Two"], "one"),
        (["a", "a", "a", "b"], ["aab"], "a"),
        (["aa", "bab", "abc"], ["ababc"], "aab"),
        (["User", ": hi"], ["User:", "Assistant:"], ""),
        (["x abcd"], ["abc", "ab"], "x "),
        (["x ab", "cd"], ["abcd", "ab"], "x "),
        (["x abc"], ["c", "abc"], "x "),
        (["never", " here"], ["stop"], "never here"),
        (["ends with st", "o"], ["stop"], "ends with sto"),
        (["no ", "stops"], [], "no stops"),
        (["🙂 日", "本 ñ"], ["日本"], "🙂 "),
    ],
)
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str], expected: str) -> None:
    assert cut(pieces, stops) == expected == cut_whole("".join(pieces), stops)


SHORT = st.text("ab", max_size=5)


@calm
@given(pieces=st.lists(SHORT, max_size=8), stops=st.lists(SHORT.filter(bool), max_size=3))
def test_the_cut_does_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    assert cut(pieces, stops) == cut([text], stops) == cut(list(text), stops) == cut_whole(text, stops)


@calm
@given(pieces=st.lists(SHORT, max_size=8), stops=st.lists(SHORT.filter(bool), max_size=3))
def test_only_what_may_begin_a_stop_string_is_held_back(pieces: list[str], stops: list[str]) -> None:
    stop_filter, shown, given_text = StopFilter(tuple(stops)), "", ""
    for piece in pieces:
        shown, given_text = shown + stop_filter.push(piece), given_text + piece
        if stop_filter.stopped:
            return
        held = given_text[len(shown) :]
        assert given_text.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)
