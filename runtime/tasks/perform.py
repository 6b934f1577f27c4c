"""Tasks in plain words: P(output | input, task).

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019: the task, like its input, is text. The
built-in tasks are in `runtime.tasks.library`; one of your own:

    rhyme = Task("rhyme", "A rhyme about {text}:", decoding={"max_new_tokens": 40, "temperature": 0.8})
    print(runtime.perform(rhyme, "the sea").text)
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from runtime._checks import check_valid_text
from runtime._suggestion import suggest
from runtime.model.model import Model
from runtime.prefixes.prefix import Prefix
from runtime.tasks.library import TASKS
from runtime.tasks.methods import Answer, Call, Writing, abstain, prepare, read_answer
from runtime.tasks.task import By, Task

__all__ = [
    "TASKS",
    "Answer",
    "By",
    "Task",
    "Writing",
    "check_abstention",
    "find_task",
    "perform",
    "prepare",
    "read_answer",
]


def perform(
    model: Model,
    task: str | Task,
    text: str,
    given: Mapping[str, Any],
    abstain_below: float | None = None,
    prefix: Prefix | None = None,
) -> Answer:
    """See `runtime.perform`; `given` holds fields and options."""
    task = find_task(task)
    check_valid_text(text)
    text = text.strip()
    if not text:
        raise ValueError(f"the text is empty; {task.name} needs one")
    check_abstention(task, abstain_below)
    fields = task.values({name: value for name, value in given.items() if name not in task.option_names})
    options = {name: value for name, value in given.items() if name in task.option_names}
    if prefix is not None:
        prefix.check(task.prompt(text, **fields))
    answer = task.method.perform(Call(model, task, text, fields, options, prefix))
    return abstain(answer, abstain_below)


def find_task(task: str | Task) -> Task:
    r"""A Task as it is, or the built-in task of this name. Raises TypeError or ValueError, naming all there are.

    >>> find_task("translate").prompt("Good day.", examples=())
    'Translate to Spanish.\nGood day. ='
    """
    if isinstance(task, Task):
        return task
    if not isinstance(task, str):
        raise TypeError(f"task is {task!r}; a Task or a name is expected: {', '.join(TASKS)}")
    if task not in TASKS:
        likely = suggest(task, TASKS)
        raise ValueError(f"there is no task {task!r}{likely}; there are {', '.join(TASKS)}, and a Task of your own")
    return TASKS[task]


def check_abstention(task: Task, least: object) -> None:
    """Raise ValueError for what is no probability, and for a task whose answers have no confidence."""
    if least is None:
        return
    if isinstance(least, bool) or not isinstance(least, numbers.Real) or not 0 <= float(least) <= 1:
        raise ValueError(f"abstain_below is {least!r}; a probability from 0 to 1 is expected")
    if not task.has_confidence:
        raise ValueError(f"abstain_below is a confidence, and {task.name} has none")
