"""Banned phrases: never in the text, and no token is forbidden that would not complete one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import NoBadWordsLogitsProcessor

import runtime
from runtime.errors import NoTokenError, OptionError
from runtime.generation.logits.banned import BannedPhrases, PhraseIndex, TokenTexts
from runtime.model.model import Model
from runtime.model.tokenizer.detokenizer import Detokenizer
from runtime.options import Options
from tests.support.vocabularies import KINDS

calm = settings(deadline=None, max_examples=50)
PROMPT = "Once upon a time there was a little mouse who"
TOKENIZERS = {name: make() for name, make in KINDS.items()}
TEXTS = {name: TokenTexts(tokenizer, max(tokenizer.get_vocab().values()) + 1) for name, tokenizer in TOKENIZERS.items()}


def text_after(detokenizer: Detokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of a continuation, by the decoding of all ids."""
    return detokenizer.decode([*prompt, *ids])[len(detokenizer.decode(prompt)) :]


@st.composite
def cases(draw: st.DrawFn, kind: str) -> tuple[list[int], list[int], list[str]]:
    """A prompt, a continuation, and phrases that its text, or a bit more of it, has in it."""
    n_vocab = len(TEXTS[kind].of_id)
    ids = st.lists(st.integers(0, n_vocab - 1), max_size=12)
    prompt = draw(st.lists(st.integers(0, n_vocab - 1), min_size=1, max_size=6))
    new = draw(ids)
    detokenizer = Detokenizer(TOKENIZERS[kind])
    text = text_after(detokenizer, prompt, [*new, *draw(ids)])
    part = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 6)).map(lambda at: text[at[0] : sum(at)])
    phrases = st.lists(
        part | st.sampled_from(["a", " ", "ab", "the", " a", "é", ". ", "#", "#a"]), min_size=1, max_size=3
    )
    return prompt, new, [phrase for phrase in draw(phrases) if phrase and "\ufffd" not in phrase] or ["e"]


@pytest.mark.parametrize("kind", KINDS)
@calm
@given(data=st.data())
def test_exactly_the_tokens_that_complete_a_phrase_are_found(kind: str, data: st.DataObject) -> None:
    prompt, new, phrases = data.draw(cases(kind))
    detokenizer = Detokenizer(TOKENIZERS[kind])
    while any(phrase in text_after(detokenizer, prompt, new) for phrase in phrases):
        new = new[:-1]
        if not new:
            break
    banned = BannedPhrases(PhraseIndex(TEXTS[kind], phrases), detokenizer, prompt)
    every = range(len(TEXTS[kind].of_id))
    texts = [text_after(detokenizer, prompt, [*new, id_]) for id_ in every]
    expected = [id_ for id_ in every if any(phrase in texts[id_] for phrase in phrases)]
    assert banned.completing(new).tolist() == expected


def test_a_byte_that_makes_a_run_valid_shows_phrases_that_end_before_it() -> None:
    """A run of byte tokens decodes to replacement characters until it is valid UTF-8."""
    tokenizer = TOKENIZERS["byte-fallback"]
    byte_of = {byte: tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    new = [byte_of[byte] for byte in b"\xe1\x80\x80\xc3"]
    banned = BannedPhrases(PhraseIndex(TEXTS["byte-fallback"], ["\u1000"]), Detokenizer(tokenizer), [0])
    assert banned.completing(new).tolist() == sorted(byte_of[byte] for byte in range(0x80, 0xC0))


def continue_at_random(kind: str, phrases: Sequence[str], n: int, seed: int) -> list[int]:
    """Ids drawn from those that are left."""
    random = np.random.default_rng(seed)
    n_vocab = len(TEXTS[kind].of_id)
    banned = BannedPhrases(PhraseIndex(TEXTS[kind], phrases), Detokenizer(TOKENIZERS[kind]), [0])
    ids: list[int] = []
    for _ in range(n):
        left = np.flatnonzero(banned.restrict(np.zeros(n_vocab, np.float32), ids) > -np.inf)
        if not left.size:
            break
        ids.append(int(random.choice(left)))
    return ids


@pytest.mark.parametrize("kind", KINDS)
@calm
@given(
    phrases=st.lists(st.text("ab e\n", min_size=1, max_size=3), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1)
)
def test_no_phrase_is_ever_in_a_text(kind: str, phrases: list[str], seed: int) -> None:
    ids = continue_at_random(kind, phrases, 20, seed)
    text = text_after(Detokenizer(TOKENIZERS[kind]), [0], ids)
    assert not any(phrase in text for phrase in phrases)


def test_nothing_is_known_of_a_strange_decoder() -> None:
    from tokenizers import decoders

    tokenizer = KINDS["metaspace"]()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("a", "bb"), decoders.Fuse()])
    texts = TokenTexts(tokenizer, 64)
    assert not texts.is_known
    banned = BannedPhrases(PhraseIndex(texts, ["bbbb"]), Detokenizer(tokenizer), [2])
    a, b = tokenizer.token_to_id("a"), tokenizer.token_to_id("b")
    # Every "a" is decoded to "bb", and two of them complete the phrase.
    assert banned.completing([a]).tolist() == [a]
    assert banned.completing([a, b]).tolist() == [a, b]


def test_each_of_many_phrases_counts() -> None:
    phrases = [f"{number}a" for number in range(3000)]
    banned = BannedPhrases(PhraseIndex(TEXTS["byte-level"], phrases), Detokenizer(TOKENIZERS["byte-level"]), [0])
    digit, letter = (TOKENIZERS["byte-level"].token_to_id(token) for token in "7a")
    assert letter in banned.completing([digit])
    assert letter not in banned.completing([letter])


# with a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"lookup": 4}, {"num_beams": 3}], ids=repr)
def test_a_continuation_goes_round_the_phrases(demo_fp32: Model, options: dict[str, Any]) -> None:
    options = {"max_new_tokens": 30, **options}
    [free] = runtime.complete(PROMPT, model=demo_fp32, **options)
    words = free.text.split()
    phrases = [words[2], words[5][-2:] + " " + words[6][:1], "e, "]
    [one] = runtime.complete(PROMPT, model=demo_fp32, banned=phrases, **options)
    assert not any(phrase in one.text for phrase in phrases)
    assert one.n_tokens > 5
    absent = "zqxj"
    assert runtime.complete(PROMPT, model=demo_fp32, banned=absent, **options)[0].ids == free.ids


def test_a_draft_changes_nothing(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"max_new_tokens": 24, "banned": [" the", "a ", "he"]}
    alone = runtime.generate(PROMPT, model=demo_fp32, **options)
    assert runtime.generate(PROMPT, model=demo_fp32, draft=demo_fp32, **options) == alone
    assert not any(phrase in alone for phrase in options["banned"])


def test_single_tokens_are_forbidden_as_in_transformers(demo_fp32: Model) -> None:
    """A phrase that every token containing it writes whole: `NoBadWordsLogitsProcessor` forbids the same ids."""
    tokenizer = demo_fp32.tokenizer
    n_vocab = demo_fp32.config.vocab_size
    phrase = "z"
    bad = [[id_] for id_ in range(n_vocab) if phrase in Detokenizer(tokenizer).decode([id_])]
    theirs = NoBadWordsLogitsProcessor(bad, eos_token_id=torch.tensor([n_vocab]))  # type: ignore[no-untyped-call]
    scores: Any = theirs(torch.tensor([[1, 2]]), torch.zeros(1, n_vocab))
    index = PhraseIndex(TokenTexts(tokenizer, n_vocab), [phrase])
    ours = BannedPhrases(index, Detokenizer(tokenizer), [1]).restrict(np.zeros(n_vocab, np.float32), [2])
    np.testing.assert_array_equal(ours, scores[0].numpy())


def test_a_phrase_across_tokens_that_transformers_lets_pass(demo_fp32: Model) -> None:
    """bad_words_ids forbids one tokenization; the text forbids them all."""
    tokenizer = demo_fp32.tokenizer
    detokenizer = Detokenizer(tokenizer)
    banned = BannedPhrases(PhraseIndex(TokenTexts(tokenizer, demo_fp32.config.vocab_size), ["king"]), detokenizer, [1])
    for before in ("k", "ki", " kin", "xki"):
        ids = [tokenizer.token_to_id(letter.replace(" ", "Ġ")) for letter in before]
        rest = "king"[len(before.strip("x ")) :]
        completing = banned.completing(ids)
        assert completing.size > 0
        assert all(
            detokenizer.decode([id_]).startswith(rest) or "king" in detokenizer.decode([id_])
            for id_ in completing.tolist()
        )
        assert tokenizer.token_to_id(rest[0]) in completing or len(rest) > 1


def test_the_prompt_may_have_what_is_banned(demo_fp32: Model) -> None:
    text = runtime.generate("The king and the king", model=demo_fp32, banned="king", max_new_tokens=20)
    assert text
    assert "king" not in text


@pytest.mark.parametrize("phrase", ["time", "me", " the", "t"])
def test_a_healed_token_counts_from_the_end_of_the_prompt(demo_fp32: Model, phrase: str) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "token_healing": True, "max_new_tokens": 12}
    [one] = runtime.complete("Once upon a ti", banned=phrase, **options)
    assert phrase not in one.text
    [free] = runtime.complete("Once upon a ti", **options)
    if phrase not in free.text:
        assert one.ids == free.ids


def test_where_everything_is_banned_there_is_no_token(demo_fp32: Model) -> None:
    eos = sorted(demo_fp32.config.eos_token_ids)
    letters = sorted({letter for token in demo_fp32.tokenizer.get_vocab() for letter in token if letter.isascii()})
    options: dict[str, Any] = {"model": demo_fp32, "banned": [*letters, " ", "\n"]}
    options["suppress_ids"] = [
        *eos,
        *(id_ for id_ in range(demo_fp32.config.vocab_size) if not _is_ascii(demo_fp32, id_)),
    ]
    [one] = runtime.complete(PROMPT, **options)
    assert (one.finish_reason, one.ids) == ("no_token", [])
    with pytest.raises(NoTokenError, match="banned"):
        runtime.generate(PROMPT, **options)
    assert {beam.finish_reason for beam in runtime.complete(PROMPT, num_beams=2, n=2, **options)} == {"no_token"}


def _is_ascii(model: Model, id_: int) -> bool:
    text = Detokenizer(model.tokenizer).decode([id_])
    return bool(text) and text.isascii() and text.isprintable()


def test_a_character_of_several_tokens_is_banned(demo_fp32: Model) -> None:
    """No token of the demo has the whole character; its bytes come one by one."""
    tokenizer = demo_fp32.tokenizer
    ids = tokenizer.encode("🎉", add_special_tokens=False).ids
    assert len(ids) > 1
    index = PhraseIndex(TokenTexts(tokenizer, demo_fp32.config.vocab_size), ["🎉"])
    banned = BannedPhrases(index, Detokenizer(tokenizer), [1])
    for n in range(len(ids)):
        assert (ids[n] in banned.completing(ids[:n])) == (n == len(ids) - 1)


# what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "kind", "told"),
    [
        ("", OptionError, "not empty"),
        (["a", ""], OptionError, "not empty"),
        (3, TypeError, "banned is 3; a text or several"),
        ([b"a"], TypeError, r"banned\[0\]"),
        ("\ud800", OptionError, "lone surrogate"),
        ("a\ufffd", OptionError, "bytes that are no character"),
    ],
    ids=repr,
)
def test_what_is_no_phrase_is_refused(wrong: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        Options(banned=wrong)


@pytest.mark.parametrize("form", [{"choices": ["a"]}, {"regex": "a"}, {"json_schema": {}}], ids=repr)
@pytest.mark.parametrize("other", [{"banned": "a"}, {"logits_processor": lambda _ids, logits: logits}], ids=repr)
def test_structured_output_is_not_forbidden_what_it_needs(form: dict[str, Any], other: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(other))} does not go with {next(iter(form))}: it may forbid"):
        Options(**other, **form)
