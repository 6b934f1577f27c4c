"""Tasks as data: prompts, printing, reading of answers; no model is needed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.scoring.last_word import find_word
from runtime.tasks.answers import first_line, first_sentence, first_sentences, three_sentences
from runtime.tasks.library import QUESTIONS, TRANSLATIONS
from runtime.tasks.perform import TASKS, By, Task


@pytest.mark.parametrize(
    ("task", "fields", "prompt"),
    [
        ("summarize", {}, "X\nTL;DR:"),
        ("summarize", {"examples": [("Y", "Z")]}, "Y\nTL;DR: Z\n\nX\nTL;DR:"),
        ("translate", {"examples": [("¿Qué?", "What?"), ("Sí.", "Yes.")]}, "¿Qué? = What?\nSí. = Yes.\nX ="),
        ("translate", {"examples": ()}, "Translate to Spanish.\nX ="),
        ("translate", {"examples": (), "to": "German"}, "Translate to German.\nX ="),
        ("answer", {"examples": [["Who?", "Me"]]}, "Q: Who?\nA: Me\nQ: X\nA:"),
        ("answer", {"examples": ()}, "Answer the question.\nQ: X\nA:"),
        ("read", {"question": "Who?"}, "X\n\nQ: Who?\nA:"),
        ("read", {"question": "Who?", "turns": [("Why?", "{So}.")]}, "X\n\nQ: Why?\nA: {So}.\nQ: Who?\nA:"),
        ("choose", {"options": ["a", "b"]}, "X"),
        ("last_word", {}, "X"),
    ],
)
def test_prompts(task: str, fields: dict[str, Any], prompt: str) -> None:
    assert TASKS[task].prompt("X", **fields) == prompt


def test_examples_lead_by_default() -> None:
    assert TASKS["translate"].prompt("X").endswith("Los niños cantarán una canción mañana.\nX =")
    assert "Où est la gare ?" in TASKS["translate"].prompt("X", to="French")
    assert TASKS["answer"].prompt("X").startswith(f"Q: {QUESTIONS[0][0]}\nA: {QUESTIONS[0][1]}\n")


@given(st.text(), st.text())
def test_texts_stand_in_the_prompt_as_they_are(text: str, question: str) -> None:
    """Braces and all."""
    assert TASKS["read"].prompt(text, question=question) == f"{text}\n\nQ: {question}\nA:"


def test_example_sets_are_sound() -> None:
    for language, pairs in TRANSLATIONS.items():
        assert len(pairs) == len(set(pairs)) >= 5
        for ours, theirs in pairs:
            assert ours[-1] == theirs[-1]  # both are sentences of one kind
            assert first_sentence(ours) == ours
            assert first_sentence(theirs) == theirs
            assert "=" not in ours + theirs
            assert language != "Spanish" or ("¿" in theirs) == ("?" in theirs)
    assert all(question.endswith("?") and answer.strip() == answer for question, answer in QUESTIONS)


def test_a_field_may_depend_on_another() -> None:
    task = Task("t", "{greeting}, {text}", fields={"to": "en", "greeting": By("to", {"en": "Hello", "es": "¡Hola"})})
    assert task.prompt("x") == "Hello, x"
    assert task.prompt("x", to="es") == "¡Hola, x"


def test_tasks_print_what_they_are() -> None:
    for task in TASKS.values():
        assert str(task).startswith(f"{task.name}: ")
        assert repr(task.template) in str(task)
    shown = str(TASKS["translate"])
    assert "'Translate to {to}.\\n{text} ='" in shown
    assert "to (default 'Spanish'), examples (default by to: Spanish, French)" in shown
    assert "stop='\\n'" in shown
    assert "first sentence" in shown
    assert "question (needed)" in str(TASKS["read"])
    assert (
        str(Task("mine", "{text}"))
        == "mine\n  prompt: '{text}'\n  fields: none\n  decoding: greedy\n  answer: whole text"
    )


def test_tasks_are_frozen() -> None:
    with pytest.raises(AttributeError):
        TASKS["summarize"].name = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        TASKS["summarize"].decoding["top_k"] = 5  # type: ignore[index]
    with pytest.raises(TypeError):
        TASKS["mine"] = TASKS["read"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "no text"}, "takes {text}"),
        ({"template": "{text} {other}"}, "'other'"),
        ({"template": "{text!r}"}, "no plain name"),
        ({"template": "{text} {0}"}, "no plain name"),
        ({"template": "{text}", "fields": {"stop": "x"}}, "cannot be called 'stop'"),
        ({"template": "{text}", "fields": {"text": "x"}}, "cannot be called 'text'"),
        ({"template": "{text}", "kind": "guess"}, "kind is 'guess'"),
        ({"template": "{text}", "zero_shot": "{text}"}, "examples"),
        ({"template": "{text}", "zero_shot": "none", "fields": {"examples": ()}}, "takes {text}"),
        ({"template": "{text}", "pairs": {"examples": "{} {}"}}, "pairs is"),
        ({"template": "{text}", "fields": {"a": ()}, "pairs": {"a": "{}"}}, "pairs is"),
        ({"template": "{text}", "fields": {"a": By("b", {})}}, "depends on 'b'"),
        ({"template": "{text}", "decoding": {"max_new_tokens": 0}}, "max_new_tokens is 0"),
        ({"template": "{text}", "kind": "choose", "decoding": {"stop": "x"}}, "overflow only"),
    ],
)
def test_wrong_tasks(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task("mine", **arguments)


@pytest.mark.parametrize(
    ("text", "one", "three"),
    [
        ("", "", ""),
        ("no end", "no end", "no end"),
        ("Mr. Fox ran. He hid! Was it 3.5 miles? Yes.", "Mr. Fox ran.", "Mr. Fox ran. He hid! Was it 3.5 miles?"),
        ("¿Dónde? ¡Hola! Sí. No.", "¿Dónde?", "¿Dónde? ¡Hola! Sí."),
        ("Où est la gare ? Là.", "Où est la gare ?", "Où est la gare ? Là."),
        ('He said "stop." Then I. So. Now.', 'He said "stop."', 'He said "stop." Then I. So.'),
        ("J. K. Fox ran. U.S. troops came", "J. K. Fox ran.", "J. K. Fox ran. U.S. troops came"),
        ("A title\n\nOne. \n\n\nTwo. Three.", "A title", "A title\n\nOne. \n\n\nTwo."),
        ("Wait… what", "Wait…", "Wait… what"),
    ],
)
def test_sentences(text: str, one: str, three: str) -> None:
    assert first_sentence(text) == one
    assert three_sentences(f" {text}\n") == three


@given(st.text("aB .!?\n\"'…", max_size=40), st.integers(1, 4))
def test_sentences_are_a_beginning(text: str, n: int) -> None:
    read = first_sentences(text, n)
    assert text.strip().startswith(read)
    assert first_sentences(read, n) == read
    assert read.startswith(first_sentences(text, 1))


def test_lines() -> None:
    assert first_line("\n  a b \nc") == "a b"
    assert first_line("") == ""


@settings(max_examples=50)
@given(st.text(max_size=20))
def test_words(text: str) -> None:
    assert find_word(text) in text
    assert find_word(f" “{find_word(text)}”, x") == (find_word(text) or "x")
