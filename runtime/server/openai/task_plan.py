"""Tasks over the server: those that write share the batch, the others run beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from runtime.generation.completion import Completion
from runtime.model.model import Model
from runtime.server.engine.engine import Engine
from runtime.server.engine.job import Job
from runtime.server.openai.delta import Delta, Details, End, describe
from runtime.server.openai.fields import CompletionRequest, TaskFields
from runtime.server.openai.plan import Prompt, as_prompts, check_length, limit
from runtime.tasks import perform as tasks
from runtime.tasks.perform import Task


@dataclasses.dataclass(frozen=True)
class TaskRequest:
    """A task, its texts, and what was given with it: fields and options by the names of `runtime.perform`."""

    task: Task
    texts: list[str]
    given: Mapping[str, Any]
    abstain_below: float | None

    @property
    def writes(self) -> bool:
        """Whether rows of the batch answer it."""
        return self.task.kind == "generate"


def read_task(engine: Engine, job: Job, body: CompletionRequest) -> TaskRequest | None:
    """The task that a request asks for. Raises TypeError or ValueError for what does not go with it."""
    fields = body.given(TaskFields.model_fields)
    if body.task is None:
        if fields:
            raise ValueError(f"{next(iter(fields))!r} is a field of tasks; set task, or leave it out")
        return None
    task = tasks.find_task(body.task)
    texts = as_prompts(body.prompt)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the prompt of the task {task.name} is its text, not token ids")
    if body.echo:
        raise ValueError("echo is for a prompt that is continued; a task makes one of its own")
    abstain_below = fields.pop("abstain_below", None)
    tasks.check_abstention(task, abstain_below)
    options = body.generation_options()
    if task.kind == "generate":
        options = limit(engine, job, options | ({"max_new_tokens": body.max_tokens} if body.max_tokens else {}))
    elif body.max_tokens or body.n or body.best_of or body.logprobs is not None:
        raise ValueError(f"{task.name} writes nothing: leave out max_tokens, n, best_of and logprobs")
    for text in texts:
        check_length(engine, str(text), *_texts_in(fields))
    return TaskRequest(task, list(map(str, texts)), fields | options, abstain_below)


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(part)


def write_prompt(model: Model, request: TaskRequest, text: str) -> Prompt:
    """The prompt of a task that writes. Raises TypeError or ValueError as `runtime.perform` does."""
    task = request.task
    names = task.option_names
    if not text.strip():
        raise ValueError(f"the text is empty; {task.name} needs one")
    fields = task.values({name: value for name, value in request.given.items() if name not in names})
    options = {name: value for name, value in request.given.items() if name in names}
    return Prompt(*tasks.prepare(model, task, text.strip(), fields, options))


def read_answer(request: TaskRequest, completion: Completion, n_truncated: int) -> End:
    """The answer in what was written."""
    answer = tasks.read_answer(request.task, completion, n_truncated, request.abstain_below)
    end = describe(completion)
    end.details.answer, end.details.confidence = answer.text, answer.confidence
    end.details.n_truncated = answer.n_truncated
    return end


def perform(model: Model, request: TaskRequest, index: int) -> Delta:
    """The answer of a task that writes nothing, in passes of its own."""
    answer = tasks.perform(model, request.task, request.texts[index], request.given, request.abstain_below)
    details = Details(
        finish_reason="stop",
        answer=answer.text,
        confidence=answer.confidence,
        probabilities=answer.probabilities,
        n_truncated=answer.n_truncated,
    )
    return Delta(index, answer.text, end=End(details))
