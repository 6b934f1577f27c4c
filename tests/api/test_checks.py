"""Checks of arguments: what passes, and what is said of the rest."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

import runtime
from runtime._checks import (
    check_count,
    check_ids,
    check_number,
    check_one_or_several_texts,
    check_prompts,
    check_texts,
    check_unicode,
    shown,
)
from runtime.model.model import Model

LONG = "a" * 100_000


@pytest.mark.parametrize("given", [["a", "b"], ("a", "b"), {"a": 1, "b": 2}, iter("ab"), (text for text in "ab")])
def test_texts_come_from_any_iterable(given: Any) -> None:
    assert check_texts("prompts", given) == ["a", "b"]


def test_one_text_or_several() -> None:
    assert check_one_or_several_texts("prompts", "ab") == ["ab"]
    assert check_one_or_several_texts("prompts", ["ab"]) == ["ab"]
    assert check_texts("words", [], least=0) == []


@pytest.mark.parametrize(
    ("wrong", "kind", "told"),
    [
        (None, TypeError, "prompts is None; a text or several are expected"),
        (b"ab", TypeError, "prompts is b'ab'; a text or several are expected"),
        ([], ValueError, "prompts is empty; at least one text is expected"),
        (["a", None], TypeError, "prompts[1] is None; a text (str) is expected"),
        ([["a"]], TypeError, "prompts[0] is ['a']; a text (str) is expected"),
    ],
)
def test_what_is_wrong_with_texts_is_said(wrong: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind) as raised:
        check_one_or_several_texts("prompts", wrong)
    assert str(raised.value) == told


def test_the_same_words_wherever_texts_are_given(demo_fp32: Model) -> None:
    calls: dict[str, Any] = {
        "prompts": lambda texts: runtime.complete(texts, model=demo_fp32),
        "continuation": lambda texts: runtime.score(texts, model=demo_fp32),
        "text": lambda texts: runtime.score_text(texts, model=demo_fp32),
        "options": lambda texts: runtime.perform("choose", "It is _.", model=demo_fp32, options=texts),
        "stop_words": lambda texts: runtime.perform("last_word", "It is", model=demo_fp32, stop_words=texts),
        "stop": lambda texts: runtime.generate("Once", model=demo_fp32, stop=texts),
        "choices": lambda texts: runtime.generate("Once", model=demo_fp32, choices=texts),
    }
    for name, call in calls.items():
        takes_ids = name in ("prompts", "continuation", "text")
        expected = "a text (str) or a list of token ids" if takes_ids else "a text (str)"
        with pytest.raises(TypeError) as raised:
            call(["a", 5])
        assert str(raised.value) == f"{name}[1] is 5; {expected} is expected"
        several = f"{re.escape(expected)}, or several of them," if takes_ids else "(a text or several|several texts)"
        with pytest.raises(TypeError, match=f"^{name} is 5; {several} are expected$"):
            call(5)


def test_prompts_are_texts_or_ids() -> None:
    assert check_prompts("prompts", "ab") == (["ab"], True)
    assert check_prompts("prompts", [5, np.int64(6)]) == ([[5, 6]], True)
    assert check_prompts("prompts", np.array([5, 6])) == ([[5, 6]], True)
    assert check_prompts("prompts", np.array([[5, 6], [7, 8]])) == ([[5, 6], [7, 8]], False)
    assert check_prompts("prompts", ("ab", (5, 6))) == (["ab", [5, 6]], False)
    assert check_prompts("prompts", iter(["ab"])) == (["ab"], False)
    assert all(type(id_) is int for id_ in check_ids("ids", np.array([5, 6], np.int32)))


@pytest.mark.parametrize(
    ("wrong", "kind", "told"),
    [
        ([], ValueError, "prompts is empty; at least one text or token id is expected"),
        ([[]], ValueError, "prompts[0] has no token ids; at least one is expected, such as that of bos_token"),
        (b"ab", TypeError, "prompts is b'ab'; a text (str) or a list of token ids, or several of them, are expected"),
        ([5, "a"], TypeError, "prompts[1] is 'a'; a token id is expected, a whole number"),
        ([5, True], TypeError, "prompts[1] is True; a token id is expected, a whole number"),
        ([True], TypeError, "prompts[0] is True; a text (str) or a list of token ids is expected"),
        ([[5, None]], TypeError, "prompts[0][1] is None; a token id is expected, a whole number"),
    ],
)
def test_what_is_wrong_with_prompts_is_said(wrong: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind) as raised:
        check_prompts("prompts", wrong)
    assert str(raised.value) == told


def test_long_values_are_cut_in_messages() -> None:
    assert len(shown(LONG)) < 200
    assert len(shown([LONG] * 100)) < 2000
    assert shown(10**5000) == "a number of thousands of digits"
    assert shown({"a": 1}) == "{'a': 1}"


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_counts_become_plain(value: Any) -> None:
    assert type(check_count("n", value)) is int


@pytest.mark.parametrize(
    ("value", "limits", "told"),
    [
        (0.0, {"above": 0}, "x is 0.0; it must be above 0"),
        (-1, {"least": 0, "most": 1}, "x is -1; it must be at least 0 and at most 1"),
        (math.inf, {}, "x is inf; it must be finite"),
        (10**400, {}, "must be finite"),
        (math.nan, {"above": 0, "most": 1}, "x is nan; it must be finite and above 0 and at most 1"),
        (np.float32(2), {"most": 1}, "x is 2.0; it must be at most 1"),
    ],
)
def test_a_number_out_of_range(value: Any, limits: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError) as raised:
        check_number("x", value, **limits)
    assert told in str(raised.value)


def test_lone_surrogates_are_named() -> None:
    assert check_unicode("regex", "añ😀") == "añ😀"
    with pytest.raises(ValueError, match=r"regex has a lone surrogate in .*, at 1: it is not valid Unicode"):
        check_unicode("regex", "a\ud800")
