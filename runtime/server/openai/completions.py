"""/v1/completions, as OpenAI's: https://platform.openai.com/docs/api-reference/completions."""

from __future__ import annotations

import contextlib
from functools import partial

from fastapi import APIRouter, Request, Response

from runtime.server.engine.engine import Engine
from runtime.server.engine.engines import find_engine
from runtime.server.engine.job import Job
from runtime.server.errors import ApiError, preparing
from runtime.server.json_route import JsonRoute
from runtime.server.openai import task_plan
from runtime.server.openai.answer import (
    Answer,
    ContinuedPrompts,
    InfilledPrompts,
    ScoredTask,
    WrittenTask,
    n_samples,
)
from runtime.server.openai.delta import Delta
from runtime.server.openai.fields import CompletionRequest
from runtime.server.openai.plan import as_prompts
from runtime.server.openai.reply import STREAMED, CompletionReply, completion_writer
from runtime.server.openai.respond import respond

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions", response_model=CompletionReply, responses=STREAMED)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continuations of one prompt or several, or a task's answers."""
    engine = find_engine(request, body.model)
    _check(engine, body)
    with contextlib.ExitStack() as stack:
        n_units = len(as_prompts(body.prompt)) * n_samples(body)
        job = stack.enter_context(engine.admit(n_units))
        answer = _make_answer(engine, job, body)
        write = completion_writer(engine.model_id, engine.names, shows_tokens=body.logprobs is not None)
        return await respond(request, answer, write, stack, select=partial(_select_best, body))


def _make_answer(engine: Engine, job: Job, body: CompletionRequest) -> Answer:
    """What answers the request. Raises ApiError for fields that do not go with its task."""
    with preparing():
        task = task_plan.read_task(engine, job, body)
    if task is None:
        return InfilledPrompts(engine, job, body) if body.suffix else ContinuedPrompts(engine, job, body)
    if task.writes:
        return WrittenTask(engine, job, body, task)
    return ScoredTask(engine, job, body, task)


def _select_best(body: CompletionRequest, choices: list[Delta]) -> list[Delta]:
    """Of the `best_of` choices of each prompt the best `n`, best first: see `End.rank`."""
    n = body.n or 1
    n_of = n_samples(body)
    if n_of == n and not body.suffix:
        return choices
    selected = []
    for begin in range(0, len(choices), n_of):
        ranked = sorted(choices[begin : begin + n_of], key=_rank, reverse=True)
        selected += ranked[:n]
    for index, choice in enumerate(selected):
        choice.index = index
    return selected


def _rank(choice: Delta) -> float:
    return choice.end.rank if choice.end else 0.0


def _check(engine: Engine, body: CompletionRequest) -> None:
    """Raise ApiError for fields that contradict each other or the model."""
    engine.check_writes()
    n = body.n or 1
    if body.suffix:
        _check_suffix(body)
    if body.best_of is not None and body.best_of < n:
        raise ApiError(f"best_of is {body.best_of}, n is {n}: the best n are of best_of", param="best_of")
    if body.best_of is not None and body.best_of > n and body.stream:
        raise ApiError("best_of is known at the end only and cannot be streamed", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError("max_tokens is 0: nothing would come back; with echo it shows the prompt", param="max_tokens")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options goes with stream", param="stream_options")


def _check_suffix(body: CompletionRequest) -> None:
    """Raise ApiError for fields that do not go with a suffix."""
    if body.stream:
        raise ApiError("with a suffix the best text is known at the end only and cannot be streamed", param="stream")
    if body.best_of == 1:
        told = "best_of is 1: a suffix ranks several texts; at least 2 are needed (8 where best_of is left out)"
        raise ApiError(told, param="best_of")
    if body.echo:
        raise ApiError("echo is for a prompt that is continued; with a suffix leave it out", param="echo")
    if body.task is not None:
        raise ApiError("a task makes its own prompt and has no suffix; leave one of them out", param="suffix")
