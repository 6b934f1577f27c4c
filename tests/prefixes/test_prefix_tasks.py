"""Tasks with a shared beginning: the same answers, and only the rest is computed."""

from __future__ import annotations

from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from runtime.tasks.perform import TASKS, Task
from runtime.tokenization.encode import encode
from tests.conftest import count_passes
from tests.support.prefixing import STORY, facts

PAIRS = [(f"How old is child number {n}?", f"{n} years old") for n in range(19)]
PASSAGE = STORY[:1400].strip()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids each pass of a prefill takes."""
    return count_passes(monkeypatch, "extend")


@pytest.mark.parametrize(
    ("task", "text", "fields"),
    [
        ("answer", "What do bees make?", {"examples": PAIRS}),
        ("translate", "Where is the train?", {"examples": PAIRS}),
        ("summarize", "The king was old.", {"examples": PAIRS, "seed": 3}),
        (Task("chat", "{rules}\nQ: {text}\nA:", fields={"rules": PASSAGE}), "Who?", {}),
    ],
    ids=["answer", "translate", "summarize", "chat"],
)
@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8"])
def test_tasks_answer_as_without(
    request: pytest.FixtureRequest, name: str, task: str | Task, text: str, fields: dict[str, Any], passes: list[int]
) -> None:
    model, found = request.getfixturevalue(name), TASKS[task] if isinstance(task, str) else task
    own = {name: value for name, value in fields.items() if name in found.fields}
    beginning = found.beginning(**own)
    assert found.prompt(text, **own).startswith(beginning)
    assert not beginning or found.prompt("Another", **own).startswith(beginning)
    prefix = runtime.prefix(beginning, model=model)
    shared: dict[str, Any] = {"max_new_tokens": 12, **fields}
    expected = runtime.perform(task, text, model=model, **shared)
    passes.clear()
    answer = runtime.perform(task, text, prefix=prefix, **shared)
    assert passes[0] < PREFILL_STEP < len(encode(model, found.prompt(text, **own)))
    assert (answer.text, answer.confidence) == (expected.text, expected.confidence)
    assert facts([answer.completion]) == facts([expected.completion])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("task", "text", "fields"),
    [
        ("choose", f"{PASSAGE} The fox was", {"options": ["red", "very hungry", "a mole"]}),
        ("choose", f"{PASSAGE} The _ was hungry.", {"options": ["fox", "old mole"]}),
        ("choose", f"{PASSAGE} The _ was hungry.", {"options": ["fox", "old mole"], "scoring": "partial"}),
        ("last_word", f"{PASSAGE} She opened the door and went into the", {}),
        ("read", PASSAGE, {"question": "Who woke?", "max_new_tokens": 8}),
        ("read", "x " * 60 + PASSAGE, {"question": "Who?", "max_new_tokens": 99, "overflow": "truncate_left"}),
    ],
)
def test_tasks_that_begin_with_the_text_answer_as_without(
    demo_int8: Model, task: str, text: str, fields: dict[str, Any], passes: list[int]
) -> None:
    assert TASKS[task].beginning(**{name: fields[name] for name in fields.keys() & TASKS[task].fields.keys()}) == ""
    prefix = runtime.prefix(text[: len(PASSAGE)], model=demo_int8)
    expected = runtime.perform(task, text, model=demo_int8, **fields)
    passes.clear()
    answer = runtime.perform(task, text, prefix=prefix, **fields)
    assert (answer.text, answer.confidence) == (expected.text, expected.confidence)
    assert dict(answer.probabilities) == dict(expected.probabilities)
    assert answer.n_truncated == expected.n_truncated
    assert answer.n_truncated or passes[0] < PREFILL_STEP


def test_a_beginning_takes_braces_and_digits_as_text() -> None:
    task = Task("odd", "{{text}} 0 {rules}1{text}, {text}", fields={"rules": "{0}"})
    assert task.beginning() == "{text} 0 {0}1"
    with pytest.raises(TypeError, match="'colour' is no field"):
        task.beginning(colour="red")
