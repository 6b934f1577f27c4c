"""The DRY penalty, beside an implementation that reads as its definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.generation.logits.dry import BREAKERS, Dry, SequenceBreakers, make_dry
from runtime.generation.logits.history import TokenHistory
from runtime.generation.logits.penalties import Penalties
from runtime.model.model import Model
from runtime.model.tokenizer.token_bytes import TokenBytes
from runtime.options import Options
from runtime.tokenization.encode import encode_text

# A small vocabulary: single letters, and tokens in which breakers lie whole, begin or end.
TOKENS = ["a", "b", "c", ":", "\n", "a:", "xy", "x", "y", "z", "yz", ":b", "cx"]
LETTERS = {token: id_ for id_, token in enumerate(TOKENS)}
calm = settings(deadline=None, max_examples=300)
IDS = st.lists(st.integers(0, len(TOKENS) - 1), min_size=1, max_size=40) | st.lists(
    st.integers(0, 2), min_size=1, max_size=40
)
TEXTS = st.lists(st.sampled_from([":", "\n", "xyz", "x", "b\n", "yz"]), max_size=3)


def encode(text: str) -> list[int]:
    """The longest token first."""
    ids = []
    while text:
        token = max((token for token in TOKENS if text.startswith(token)), key=len)
        ids.append(LETTERS[token])
        text = text[len(token) :]
    return ids


def make_breakers(texts: Sequence[str]) -> SequenceBreakers:
    return SequenceBreakers(texts, [token.encode() for token in TOKENS], encode)


def expected_sequences(texts: Sequence[str]) -> list[list[int]]:
    """Every way in which a breaker may lie across tokens: in one, or from the end of one on through others."""
    found = []
    for text in texts:
        for token in TOKENS:
            if text in token:
                found.append([LETTERS[token]])
            else:
                ends = [n for n in range(1, len(text)) if token.endswith(text[:n])]
                found += [[LETTERS[token], *encode(text[n:])] for n in ends]
    return found


def expected_penalties(
    ids: list[int], multiplier: float, base: float, allowed: int, texts: Sequence[str]
) -> dict[int, float]:
    """By the definition, one id of the vocabulary after the other."""
    sequences = expected_sequences(texts)
    limit = len(ids)
    for at in range(len(ids) - 1, -1, -1):
        whole = [len(one) for one in sequences if ids[at : at + len(one)] == one]
        if whole:
            limit = len(ids) - at - max(whole)
            break
    penalties = {}
    if len(ids) <= allowed or limit < allowed:
        return {}
    for id_ in set(ids):
        if [id_] in sequences:
            continue
        lengths = []
        for at in range(1, len(ids)):
            if ids[at] == id_:
                n = 0
                while n < at and ids[at - 1 - n] == ids[-1 - n]:
                    n += 1
                lengths.append(min(n, limit))
        if lengths and max(lengths) >= allowed:
            penalties[id_] = multiplier * base ** (max(lengths) - allowed)
    return penalties


def history_of(ids: Sequence[int], n_window: int = 64) -> TokenHistory:
    history = TokenHistory(1, n_window, finds_repeats=True)
    for end in range(1, len(ids) + 1):
        history.follow(ids[:end])
    return history


@calm
@given(
    ids=IDS,
    texts=TEXTS,
    multiplier=st.sampled_from([0.8, 3.0]),
    base=st.sampled_from([1.0, 1.75, 2.5]),
    allowed=st.integers(0, 5),
    logits=st.lists(st.floats(-20, 20, width=32), min_size=len(TOKENS), max_size=len(TOKENS)),
)
def test_it_is_what_the_definition_says(
    ids: list[int], texts: list[str], multiplier: float, base: float, allowed: int, logits: list[float]
) -> None:
    found = np.array(logits, np.float32)
    Dry(multiplier, base, allowed, make_breakers(texts)).penalize(found, history_of(ids))
    penalties = expected_penalties(ids, multiplier, base, allowed, texts)
    expected = [logit - penalties.get(id_, 0.0) for id_, logit in enumerate(logits)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_example_of_llama_cpp() -> None:
    """After a b c c b c y a b c: c would prolong 3 ids, y 2, b 1."""
    ids = [LETTERS[letter] for letter in "abccbcyabc"]
    found = Dry(1.0, 2.0, 1, make_breakers([])).repetitions(history_of(ids))
    assert found == {LETTERS["c"]: 3, LETTERS["y"]: 2, LETTERS["b"]: 1}


def test_a_multiplier_of_0_is_off() -> None:
    assert Dry(0.0, 2.0, 1, make_breakers([])).repetitions(history_of([0, 1] * 9)) == {}


@pytest.mark.parametrize(("base", "expected"), [(1.75, -3.4e38), (1e60, -np.inf)])
def test_a_long_repetition_stays_a_number(base: float, expected: float) -> None:
    logits: NDArray[np.float32] = np.zeros(len(TOKENS), np.float32)
    Dry(1.0, base, 1, make_breakers([])).penalize(logits, history_of([0, 1] * 400, 1000))
    assert not np.isnan(logits).any()
    assert logits[0] <= expected * 0.1
    assert np.isinf(expected) == np.isinf(logits[0])


def test_breakers_of_a_real_vocabulary(demo_fp32: Model) -> None:
    """A repetition does not reach across a line end, in whichever token it is."""
    tokenizer = demo_fp32.tokenizer
    bytes_of = TokenBytes(tokenizer)
    token_bytes = [bytes_of(id_) or b"" for id_ in range(demo_fp32.config.vocab_size)]
    breakers = SequenceBreakers(BREAKERS, token_bytes, lambda text: encode_text(tokenizer, text))
    for id_ in breakers.alone.tolist():
        assert any(breaker.encode() in token_bytes[id_] for breaker in BREAKERS)
    for text, n in [("The king", None), ('He said: "The king', 2), ("One\nThe king", 2)]:
        ids = encode_text(tokenizer, text)
        assert breakers.n_after_last(np.array(ids)) == (n or len(ids))
    line = encode_text(tokenizer, "The king went away.\n")
    dry: dict[str, Any] = {"multiplier": 1.0, "base": 2.0, "allowed_length": 1}
    within = history_of([*line, *line[:2]])
    found = Dry(**dry, breakers=breakers).repetitions(within)
    assert found == {line[2]: 2}


def test_the_breakers_of_a_model_are_found_once(demo_fp32: Model) -> None:
    dry = make_dry(demo_fp32, 1.0, 2.0, 2)
    assert dry
    again = make_dry(demo_fp32, 0.5, 1.5, 3)
    assert again
    assert again._breakers is dry._breakers
    other = make_dry(demo_fp32, 1.0, 2.0, 2, ["\n"])
    assert other
    assert other._breakers is not dry._breakers
    assert make_dry(demo_fp32, 0.0, 2.0, 2) is None


def test_it_is_one_of_the_penalties() -> None:
    """Beside others it acts on the same history, and before bans."""
    ids = [LETTERS[letter] for letter in "abcabcab"]
    dry = Dry(1.0, 2.0, 2, make_breakers([]))
    logits: NDArray[np.float32] = np.zeros(len(TOKENS), np.float32)
    alone = Penalties(Options(), [], len(TOKENS), 64, dry)
    assert not alone.changes_nothing
    history = alone.new_history(1, 64)
    history.follow(ids)
    found = alone(logits, history, len(ids) - 1)
    assert np.flatnonzero(found).tolist() == [LETTERS["c"]]
    assert found[LETTERS["c"]] == -(2.0**3)
    both = Penalties(Options(presence_penalty=0.5, suppress_ids=[LETTERS["c"]]), [], len(TOKENS), 64, dry)
    found = both(logits, history, len(ids) - 1)
    assert found[LETTERS["c"]] == -np.inf
    assert found[LETTERS["a"]] == -0.5
