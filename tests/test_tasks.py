"""P(output | input, task): prompts, answers and confidences of the tasks, against transformers."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime
from runtime import tasks
from runtime.choice import split_blank
from runtime.last_word import find_word
from runtime.model import Model
from runtime.row import Row
from runtime.sentences import first_line, first_sentence, first_sentences, three_sentences
from runtime.stop_words import STOP_WORDS
from runtime.task_library import QUESTIONS, TRANSLATIONS
from runtime.tasks import TASKS, By, Task
from tests import oracle
from tests.conftest import DEMO

STORY = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
CLOSE = 1e-4
KING = "The king was old. He had three sons."


# prompts


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


# answers


def test_summary_is_three_sentences_of_a_sample(demo_fp32: Model) -> None:
    written = runtime.generate(f"{KING}\nTL;DR:", model=demo_fp32, max_new_tokens=100, temperature=1.0, top_k=2, seed=3)
    answer = runtime.perform("summarize", f"  {KING}\n", model=demo_fp32, seed=3)
    assert answer.text == three_sentences(written)
    assert answer.completion is not None
    assert answer.completion.text == written
    assert answer.confidence is None
    assert runtime.generate(KING, task="summarize", model=demo_fp32, seed=3) == answer.text


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("translate", {"to": "French"}),
        ("translate", {"examples": [("Uno.", "One.")]}),
        ("answer", {}),
        ("read", {"question": "Who was old?", "turns": [("How many sons had he?", "Three.")]}),
    ],
)
def test_written_answers_are_transformers_greedy_ones(demo_fp32: Model, task: str, fields: dict[str, Any]) -> None:
    answer = runtime.perform(task, KING, model=demo_fp32, max_new_tokens=12, **fields)
    assert answer.completion is not None
    ids, logprob = oracle.greedy(TASKS[task].prompt(KING, **fields), answer.completion.n_tokens)
    assert answer.completion.ids == ids
    written = oracle.demo_tokenizer().decode(ids)
    assert answer.text == TASKS[task].reads(written.partition("\n")[0])
    assert answer.completion.finish_reason == ("stop" if "\n" in written else "length")
    assert answer.confidence == pytest.approx(math.exp(logprob) if answer.text else 0, rel=1e-3)


@pytest.mark.parametrize("scoring", ["full", "partial"])
def test_options_are_scored_as_transformers_does(demo_fp32: Model, scoring: str) -> None:
    before, after = "The fox ran after the hare because the ", " was hungry."
    options = ["fox", "hare", "old king"]
    logprobs = []
    for option in options:
        parts = (before, option + after) if scoring == "full" else (before + option, after)
        logprobs.append(float(oracle.harness(*parts)[1].sum()))
    shares = np.exp(logprobs) / np.exp(logprobs).sum()
    answer = runtime.perform("choose", f"{before}_{after}", options=options, scoring=scoring, model=demo_fp32)
    assert list(answer.probabilities) == options
    assert np.allclose(list(answer.probabilities.values()), shares, atol=1e-3)
    assert answer.text == options[int(np.argmax(shares))]
    assert answer.confidence == max(answer.probabilities.values())
    assert answer.completion is None


def test_options_follow_a_text_without_blank(demo_fp32: Model) -> None:
    logprobs = [float(oracle.harness("Once upon a", f" {option}")[1].sum()) for option in ("time", "king")]
    answer = runtime.perform("choose", "Once upon a", options=["king", "time"], model=demo_fp32)
    assert answer.text == "time"
    assert answer.confidence == pytest.approx(1 / (1 + math.exp(logprobs[1] - logprobs[0])), abs=1e-4)


def test_the_only_difference_decides(demo_fp32: Model) -> None:
    """Order and company of the options do not matter."""
    options = ["king", "time", "mouse"]
    first = runtime.perform("choose", "Once upon a", options=options, model=demo_fp32).probabilities
    again = runtime.perform("choose", "Once upon a", options=options[::-1], model=demo_fp32).probabilities
    assert first == pytest.approx(again)
    assert sum(first.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a _ b", ("a ", " b")),
        ("a ___.", ("a ", ".")),
        ("_ b", ("", " b")),
        ("a _", ("a ", "")),
        ("snake_case __init__ a_", ("snake_case __init__ a_", None)),
        ("", ("", None)),
    ],
)
def test_blanks(prompt: str, parts: tuple[str, str | None]) -> None:
    assert split_blank(prompt) == parts


def _likeliest_word(prompt: str, stop_words: frozenset[str]) -> tuple[str, float]:
    """By transformers: each likely first token completed greedily, until one makes a word that is no stop word."""
    tokenizer, ids = oracle.demo_tokenizer(), oracle.demo_tokenizer().encode(prompt)
    first = oracle.logprobs(oracle.demo(), ids)[-1]
    for id_ in np.argsort(-first):
        if not tokenizer.decode([id_]).startswith(" ") or not tokenizer.decode([id_]).strip():
            continue
        written, logprob = [int(id_)], float(first[id_])
        while True:
            last = oracle.logprobs(oracle.demo(), [*ids, *written])[-1]
            longer = tokenizer.decode([*written, int(last.argmax())])
            if find_word(longer) == find_word(tokenizer.decode(written)) != "":
                break
            written.append(int(last.argmax()))
            logprob += float(last.max())
        word = find_word(tokenizer.decode(written))
        if word.lower() not in stop_words:
            return word, math.exp(logprob)
    raise AssertionError("no word")


@pytest.mark.parametrize("stop_words", [STOP_WORDS, frozenset(), frozenset({"king", "man"})])
@pytest.mark.parametrize("text", ["The king and the queen looked at", "He lived with his wife in the"])
def test_last_word_is_the_likeliest_that_is_no_stop_word(
    demo_fp32: Model, text: str, stop_words: frozenset[str]
) -> None:
    answer = runtime.perform("last_word", f"{text} ", model=demo_fp32, stop_words=stop_words)
    word, probability = _likeliest_word(text, stop_words)
    assert answer.text == word
    assert answer.confidence == pytest.approx(probability, rel=1e-3)
    assert answer.text.lower() not in stop_words


def test_plain_export_and_int8_do_every_task(demo_reference: Model, demo_int8: Model) -> None:
    fields: dict[str, dict[str, Any]] = {
        "read": {"question": "Who?"},
        "choose": {"options": ["king", "queen"]},
        "summarize": {"seed": 1},
    }
    for model in (demo_reference, demo_int8):
        for name in TASKS:
            given = fields.get(name, {}) | ({"max_new_tokens": 8} if TASKS[name].kind == "generate" else {})
            answer = runtime.perform(name, KING, model=model, **given)
            assert answer.confidence is None or 0 <= answer.confidence <= 1


# confidence


def test_abstaining(demo_fp32: Model) -> None:
    options = {"options": ["king", "time"], "model": demo_fp32}
    confident = runtime.perform("choose", "Once upon a", **options)
    assert confident.confidence is not None
    assert runtime.perform("choose", "Once upon a", abstain_below=confident.confidence, **options) == confident
    unsure = runtime.perform("choose", "Once upon a", abstain_below=1.0, **options)
    assert (unsure.text, unsure.confidence, unsure.probabilities) == (
        "", confident.confidence, confident.probabilities,
    )  # fmt: skip
    written = runtime.perform("answer", "Who?", model=demo_fp32, abstain_below=0.99)
    assert written.text == ""
    assert written.completion is not None


def test_an_empty_answer_has_no_confidence(demo_fp32: Model) -> None:
    answer = runtime.perform("answer", "Who?", model=demo_fp32, stop_ids=list(range(8192)))
    assert (answer.text, answer.confidence) == ("", 0.0)


# prompts that are too long


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The ids of every prompt that is decoded."""
    seen: list[list[int]] = []

    class Spy(Row):
        def __init__(self, model: Model, ids: list[int], *rest: Any, **more: Any) -> None:
            seen.append(list(ids))
            super().__init__(model, ids, *rest, **more)

    monkeypatch.setattr(tasks, "Row", Spy)
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
    assert runtime.generate(article, task="summarize", model=demo_fp32, overflow="truncate_left", seed=1) == answer.text


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
    answer = runtime.perform("summarize", article, model=demo_fp32, overflow="slide", temperature=0, max_new_tokens=40)
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


# tasks of one's own


def test_a_task_in_three_lines(demo_fp32: Model) -> None:
    rhyme = Task("rhyme", "A rhyme about {text}:", decoding={"max_new_tokens": 6})
    answer = runtime.perform(rhyme, "the sea", model=demo_fp32)
    assert answer.text == runtime.generate("A rhyme about the sea:", model=demo_fp32, max_new_tokens=6).strip()
    assert runtime.generate("the sea", task=rhyme, model=demo_fp32) == answer.text


def test_a_classifier_in_three_lines(demo_fp32: Model) -> None:
    mood = Task("mood", "{text}\nThe mouse was", kind="choose", fields={"options": ("happy", "sad")})
    answer = runtime.perform(mood, "The mouse had lost its mother.", model=demo_fp32)
    expected = runtime.perform(
        "choose", "The mouse had lost its mother.\nThe mouse was", options=["happy", "sad"], model=demo_fp32
    )
    assert answer == expected
    assert runtime.generate("The mouse had lost its mother.", task=mood, model=demo_fp32) == answer.text


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


# wrong arguments


@pytest.mark.parametrize(
    ("task", "fields", "error", "message"),
    [
        ("sumarize", {}, ValueError, "no task 'sumarize'; there are summarize, translate, answer, read, choose"),
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
        ("translate", {"langauge": "x"}, TypeError, "'langauge' is no field of translate, which has to"),
        ("answer", {"temperature": -1}, ValueError, "temperature is -1"),
        ("answer", {"top_k": 2}, ValueError, "top_k=2 chooses"),
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


def test_options_can_be_overridden(demo_fp32: Model) -> None:
    answer = runtime.perform("summarize", KING, model=demo_fp32, temperature=0, max_new_tokens=5)
    assert answer.completion is not None
    assert answer.completion.n_tokens == 5
    assert answer.completion.seed is None
    stopped = runtime.perform("summarize", KING, model=demo_fp32, temperature=0, max_new_tokens=30, stop="a")
    assert "a" not in stopped.text


# reading


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


def test_importing_the_package_loads_no_task() -> None:
    code = "import sys, runtime; print([m for m in sys.modules if m in ('runtime.tasks', 'runtime.evaluation')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
