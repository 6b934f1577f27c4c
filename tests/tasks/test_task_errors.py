"""Prompts that are too long for a task, and wrong arguments."""

from __future__ import annotations

from typing import Any

import pytest

import runtime
from runtime.generation.row import Row
from runtime.model.model import Model
from runtime.tasks import methods
from tests.conftest import DEMO

STORY = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
KING = "The king was old. He had three sons."


# prompts that are too long


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The ids of every prompt that is decoded."""
    seen: list[list[int]] = []

    class Spy(Row):
        def __init__(self, model: Model, ids: list[int], *rest: Any, **more: Any) -> None:
            seen.append(list(ids))
            super().__init__(model, ids, *rest, **more)

    monkeypatch.setattr(methods, "Row", Spy)
    return seen


def test_a_long_article_keeps_its_instruction(demo_fp32: Model, prompts: list[list[int]]) -> None:
    article = STORY[:4000].strip()
    with pytest.raises(ValueError, match=r"prompt is \d+ tokens and 412 fit: .*max_new_tokens 100.*truncate_left"):
        runtime.perform("summarize", article, model=demo_fp32)
    answer = runtime.perform("summarize", article, model=demo_fp32, overflow="truncate_left", seed=1)
    (ids,) = prompts
    text, _, tail = demo_fp32.tokenizer.decode(ids).rpartition("\n")
    assert tail == "TL;DR:"
    assert article.endswith(text)
    assert 400 <= len(ids) <= 412
    assert answer.n_truncated == len(demo_fp32.tokenizer.encode(f"{article}\nTL;DR:").ids) - len(ids)
    assert answer.completion is not None
    assert answer.completion.n_truncated == answer.n_truncated


@pytest.mark.parametrize("text", [STORY[:4000], "😀" * 900, "ñ" * 1500])
def test_what_comes_before_the_text_stays_too(demo_fp32: Model, prompts: list[list[int]], text: str) -> None:
    runtime.perform("translate", text, model=demo_fp32, examples=(), overflow="truncate_left", max_new_tokens=1)
    prompt = demo_fp32.tokenizer.decode(prompts[0])
    assert prompt.startswith("Translate to Spanish.\n")
    assert prompt.endswith(f"{text.strip()[-20:]} =")
    assert "�" not in prompt
    assert len(prompts[0]) > 490


def test_exactly_the_limit_and_one_over(demo_fp32: Model, prompts: list[list[int]]) -> None:
    n_tail = len(demo_fp32.tokenizer.encode("a\nTL;DR:").ids) - 1
    fitting = ("a " * (512 - 10 - n_tail)).strip()
    runtime.perform("summarize", fitting, model=demo_fp32, max_new_tokens=10, temperature=0)
    assert len(prompts[0]) == 502
    with pytest.raises(ValueError, match="prompt is 503 tokens and 502 fit"):
        runtime.perform("summarize", f"a {fitting}", model=demo_fp32, max_new_tokens=10)
    cut = runtime.perform(
        "summarize", f"a {fitting}", model=demo_fp32, max_new_tokens=10, temperature=0, overflow="truncate_left"
    )
    assert cut.n_truncated == 1
    assert prompts[1] == prompts[0]


def test_other_overflows_are_those_of_generate(demo_fp32: Model) -> None:
    article = STORY[:1900]
    answer = runtime.perform(
        "summarize", article, model=demo_fp32, overflow="slide", temperature=0, min_new_tokens=40, max_new_tokens=40
    )
    assert answer.completion is not None
    assert answer.completion.n_slides + answer.n_truncated > 0


def test_long_texts_before_a_choice_and_a_last_word(demo_fp32: Model) -> None:
    text = f"{STORY[:3000]}. The _ was hungry."
    for name, fields in (("choose", {"options": ["fox", "old king"]}), ("last_word", {})):
        with pytest.raises(ValueError, match=r"prompt is \d+ tokens and \d+ fit: .*truncate_left"):
            runtime.perform(name, text, model=demo_fp32, **fields)
        cut = runtime.perform(name, text, model=demo_fp32, overflow="truncate_left", **fields)
        assert cut.n_truncated > 0
        assert cut.text
        with pytest.raises(ValueError, match="error or truncate_left"):
            runtime.perform(name, text, model=demo_fp32, overflow="slide", **fields)


def test_what_cannot_be_cut(demo_fp32: Model) -> None:
    cut: dict[str, Any] = {"model": demo_fp32, "overflow": "truncate_left"}
    with pytest.raises(ValueError, match="too long without any of the text"):
        runtime.perform("read", "A fox.", question="Why? " * 300, **cut)
    with pytest.raises(ValueError, match="what follows the blank _ is too long"):
        runtime.perform("choose", f"The _ {STORY[:3000]}", options=["fox", "king"], **cut)


# wrong arguments


@pytest.mark.parametrize(
    ("task", "fields", "error", "message"),
    [
        ("sumarize", {}, ValueError, "no task 'sumarize' \\(did you mean summarize\\?\\); there are summarize,"),
        (5, {}, TypeError, "task is 5; a Task or a name"),
        ("summarize", {"examples": "one"}, TypeError, "examples is 'one'; pairs"),
        ("summarize", {"examples": 5}, TypeError, "examples is 5; pairs"),
        ("answer", {"examples": [("a", "b", "c")]}, TypeError, "pairs of texts"),
        ("read", {}, ValueError, "read needs question="),
        ("read", {"question": 5}, TypeError, "question is 5; a text"),
        ("read", {"question": "q", "turns": ["q"]}, TypeError, "turns is"),
        (
            "read",
            {"question": "q", "examples": ()},
            TypeError,
            r"'examples' is no field of read.*question.*max_new_tok",
        ),
        ("translate", {"to": "German"}, ValueError, "to is 'German'.*Spanish, French. Give examples="),
        ("translate", {"to": ["German"]}, TypeError, r"to is \['German'\]; a text is expected"),
        ("translate", {"langauge": "x"}, TypeError, "'langauge' is no field of translate, which has to"),
        ("answer", {"temperature": -1}, ValueError, "temperature is -1"),
        ("answer", {"top_k": 2}, ValueError, "top_k=2 filters"),
        ("answer", {"abstain_below": 2}, ValueError, "abstain_below is 2"),
        ("answer", {"abstain_below": "x"}, ValueError, "abstain_below is 'x'"),
        ("summarize", {"abstain_below": 0.5}, ValueError, "summarize has none"),
        ("choose", {}, ValueError, "choose needs options="),
        ("choose", {"options": "ab"}, TypeError, "options is 'ab'"),
        ("choose", {"options": ["a"]}, ValueError, "two or more"),
        ("choose", {"options": ["a", "a"]}, ValueError, "all different"),
        ("choose", {"options": ["a", ""]}, TypeError, "none of them empty"),
        ("choose", {"options": ["a", "b"], "scoring": "best"}, ValueError, "'best'; full or partial"),
        ("choose", {"options": ["a", "b"], "scoring": "partial"}, ValueError, "after the blank _, and there is none"),
        (
            "choose",
            {"options": ["a", "b"], "temperature": 1.0},
            TypeError,
            "'temperature' is no field.*options overflow",
        ),
        ("last_word", {"stop_words": "the"}, TypeError, "stop_words is 'the'"),
    ],
)
def test_wrong_arguments(
    demo_fp32: Model, task: Any, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        runtime.perform(task, "A text", model=demo_fp32, **fields)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "text is empty"),
        (" \n", ValueError, "text is empty"),
        (None, TypeError, "a text is a str"),
        ("\ud800", ValueError, "lone surrogate"),
    ],
)
def test_wrong_texts(demo_fp32: Model, text: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        runtime.perform("summarize", text, model=demo_fp32)


def test_several_blanks(demo_fp32: Model) -> None:
    with pytest.raises(ValueError, match="2 blanks"):
        runtime.perform("choose", "_ and _", options=["a", "b"], model=demo_fp32)


def test_options_can_be_overridden(demo_fp32: Model) -> None:
    answer = runtime.perform("summarize", KING, model=demo_fp32, temperature=0, max_new_tokens=5)
    assert answer.completion is not None
    assert answer.completion.n_tokens == 5
    assert answer.completion.seed is None
    stopped = runtime.perform("summarize", KING, model=demo_fp32, temperature=0, max_new_tokens=30, stop="a")
    assert "a" not in stopped.text
