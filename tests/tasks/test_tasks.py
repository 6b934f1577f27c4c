"""P(output | input, task): answers and confidences of the tasks, against transformers."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.model.model import Model
from runtime.scoring.last_word import STOP_WORDS, find_word
from runtime.scoring.multiple_choice import split_blank
from runtime.tasks.answers import three_sentences
from runtime.tasks.perform import TASKS, Task
from tests.support import oracle

KING = "The king was old. He had three sons."


# answers


def test_summary_is_three_sentences_of_a_sample(demo_fp32: Model) -> None:
    written = runtime.generate(f"{KING}\nTL;DR:", model=demo_fp32, max_new_tokens=100, temperature=1.0, top_k=2, seed=3)
    answer = runtime.perform("summarize", f"  {KING}\n", model=demo_fp32, seed=3)
    assert answer.text == three_sentences(written)
    assert answer.completion is not None
    assert answer.completion.text == written
    assert answer.confidence is None


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


# tasks of one's own


def test_a_task_in_three_lines(demo_fp32: Model) -> None:
    rhyme = Task("rhyme", "A rhyme about {text}:", decoding={"max_new_tokens": 6})
    answer = runtime.perform(rhyme, "the sea", model=demo_fp32)
    assert answer.text == runtime.generate("A rhyme about the sea:", model=demo_fp32, max_new_tokens=6).strip()


def test_a_classifier_in_three_lines(demo_fp32: Model) -> None:
    mood = Task("mood", "{text}\nThe mouse was", kind="choose", fields={"options": ("happy", "sad")})
    answer = runtime.perform(mood, "The mouse had lost its mother.", model=demo_fp32)
    expected = runtime.perform(
        "choose", "The mouse had lost its mother.\nThe mouse was", options=["happy", "sad"], model=demo_fp32
    )
    assert answer == expected


def test_importing_the_package_loads_no_task() -> None:
    names = "('runtime.tasks', 'runtime.scoring.evaluation')"
    code = f"import sys, runtime; runtime.load; print([m for m in sys.modules if m in {names}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
