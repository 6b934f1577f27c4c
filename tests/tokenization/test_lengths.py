"""Texts without an end: refused before they are tokenized where they cannot fit, read in linear time where they may."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Encoding, Tokenizer, decoders, models, normalizers

import runtime
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.scoring.wikitext import detokenize
from runtime.tokenization import encode as text_module
from runtime.tokenization.encode import check_fits, encode
from tests.conftest import DEMO
from tests.support.hostile import TEXTS
from tests.support.vocabularies import model_of
from tests.trials import lengths

HUGE = "a" * 10_000_000
TOKENIZER = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
LONGEST = max(map(len, TOKENIZER.get_vocab()))


# refused ------------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Model], Any]] = {
    "generate": lambda model: runtime.generate(HUGE, model=model),
    "overflow stop": lambda model: runtime.generate(HUGE, model=model, overflow="stop"),
    "special tokens": lambda model: runtime.generate("<|endoftext|>" * 10**6, model=model, special_tokens=True),
    "stream": lambda model: runtime.stream(HUGE, model=model),
    "complete": lambda model: runtime.complete(["Once", HUGE], model=model),
    "beams": lambda model: runtime.complete(HUGE, model=model, num_beams=2),
    "context": lambda model: runtime.score(" b", context=HUGE, model=model),
    "continuation": lambda model: runtime.score(HUGE, context="b", model=model, overflow="truncate_left"),
    "prefix": lambda model: runtime.prefix(HUGE, model=model),
    "translate": lambda model: runtime.perform("translate", HUGE, model=model, to="Spanish", overflow="error"),
    "choose": lambda model: runtime.perform("choose", HUGE, model=model, options=["a", "b"]),
    "last_word": lambda model: runtime.perform("last_word", HUGE, model=model),
}


@pytest.fixture
def untokenized(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No long text is tokenized."""
    encode_any = calls.encode

    def watched(tokenizer: Tokenizer, text: str, **named: Any) -> Encoding:
        assert len(text) < 10_000
        return encode_any(tokenizer, text, **named)

    monkeypatch.setattr(calls, "encode", watched)
    return


@pytest.mark.usefixtures("untokenized")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(demo_int8: Model, call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"[\d,]+ characters is at least [\d,]+ tokens, and [\d,]+ fit: shorten it"):
        call(demo_int8)


@given(text=TEXTS)
def test_what_fits_is_never_refused(text: str) -> None:
    model = model_of(TOKENIZER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "LONG", 0)
        try:
            ids = encode(model, text)
        except ValueError:
            return
        check_fits(model, text, len(ids))


def test_the_longest_token_is_the_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "LONG", 0)
    model, n = model_of(TOKENIZER), 7
    check_fits(model, "x" * (n * LONGEST), n)
    with pytest.raises(ValueError, match=f"at least {n + 1} tokens, and {n} fit"):
        check_fits(model, "x" * (n * LONGEST + 1), n)


def growing() -> Iterator[Tokenizer]:
    """Tokenizers whose tokens may stand for any length."""
    yield Tokenizer(models.WordLevel({"a": 0, "unknown": 1}, unk_token="unknown"))
    stripping = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    stripping.add_tokens([AddedToken("<pad>", lstrip=True)])
    yield stripping
    dropping = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    dropping.normalizer = normalizers.Replace("a", "")
    dropping.decoder = decoders.ByteLevel()
    yield dropping


@pytest.mark.parametrize("tokenizer", growing(), ids=["unknown words", "white space", "normalized"])
def test_other_tokenizers_may_have_tokens_of_any_length(tokenizer: Tokenizer) -> None:
    model, text = model_of(tokenizer), "a" * 50_000 + " " * 100_000 + "<pad>"
    check_fits(model, text, 1)


# read ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lengths.kinds())
def test_a_long_text_of_any_kind_is_read(demo_int8: Model, name: str) -> None:
    """Quadratic time, at a tenth of a second for a thousand characters, would be an hour."""
    text = lengths.kinds()[name](300_000)
    ids = encode(demo_int8, text)
    assert demo_int8.tokenizer.decode(ids) == text


@pytest.mark.parametrize("overflow", ["truncate_left", "slide"])
def test_a_long_prompt_is_cut_where_that_is_asked_for(demo_int8: Model, overflow: Any) -> None:
    [found] = runtime.complete("once upon " * 20_000, model=demo_int8, overflow=overflow, max_new_tokens=2)
    assert found.n_truncated > 20_000


def test_the_trial_knows_a_straight_line_from_a_curve() -> None:
    def power_of(exponent: float) -> float:
        seconds = iter([float(n**exponent) for n in (1, 2, 4, 8)])
        with pytest.MonkeyPatch.context() as patch:
            clock = iter([time for took in seconds for time in (0.0, took)])
            patch.setattr(lengths.time, "process_time", lambda: next(clock))
            return lengths.measure(TOKENIZER, lambda _: "", 8)[1]

    assert power_of(1.0) == pytest.approx(1.0)
    assert lengths.ALLOWED < power_of(2.0) == pytest.approx(2.0)


HARNESS = [
    r"\(\s*([^)]*?)\s*\)",
    r"\[\s*([^]]*?)\s*\]",
    r"\{\s*([^}]*?)\s*\}",
    r'"\s*([^"]*?)\s*"',
    r"'\s*([^']*?)\s*'",
]


@given(page=st.text("()[]{}\"' \n\u2003ab", max_size=20).filter(lambda page: "s '" not in page))
def test_brackets_are_those_of_the_harness(page: str) -> None:
    expected = page
    for pattern in HARNESS:
        expected = re.sub(pattern, lambda match: f"{match[0][0]}{match[1]}{match[0][-1]}", expected)
    expected = expected.replace(" \n", "\n").replace("\n ", "\n")
    assert detokenize(page) == expected


@pytest.mark.parametrize("page", ["(" + " " * 100_000, "( " * 100_000, '"' + " " * 100_000, "' " * 100_001], ids=len)
def test_brackets_that_never_close_take_no_cubic_time(page: str) -> None:
    """A thousand spaces took two seconds."""
    assert detokenize(page)
