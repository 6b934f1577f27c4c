"""/v1/completions, as OpenAI's: https://platform.openai.com/docs/api-reference/completions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from runtime.form import READERS
from runtime.server.engine.engine import Engine
from runtime.server.engine.job import Job
from runtime.server.engine.token_names import read_prompt
from runtime.server.errors import ApiError, ErrorReply, preparing
from runtime.server.openai import task_plan
from runtime.server.openai.exchange import STOPPED, EventStream, decode, json_response, while_connected
from runtime.server.openai.fields import CompletionRequest
from runtime.server.openai.gain import Continuation, Details, End, Gain, collect
from runtime.server.openai.plan import Plan, as_prompts, check_reply, encode_one, make_limited, make_rows, too_long
from runtime.server.openai.reply import CompletionReply, Counted, as_events, completion_writer, to_json
from runtime.server.openai.task_plan import TaskRequest
from runtime.server.transport.json_route import JsonRoute
from runtime.tokenization.encode import encode

router = APIRouter(route_class=JsonRoute)
DEFAULT_MAX_TOKENS = 16  # OpenAI's
ERRORS: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorReply, "description": "what was wrong"}}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "object", "properties": {"data": {"type": "string"}}}}},
        "description": "the reply; with stream its chunks, as server-sent events that end with [DONE]",
    },
    **ERRORS,
}


@router.post("/v1/completions", response_model=CompletionReply, responses=STREAMED)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continuations of one prompt or several, or what a task makes of them."""
    engine: Engine = request.app.state.engine
    _check(engine, body)
    with contextlib.ExitStack() as stack:
        n_prompts = len(as_prompts(body.prompt))
        job = stack.enter_context(engine.admit(n_prompts * _n_samples(body)))
        answering = Answering(engine, job, body)
        await while_connected(request, answering.prepare())
        write = completion_writer(engine.model_id, engine.names, shows_tokens=body.logprobs is not None)
        if body.stream:
            stack.pop_all()  # the stream closes the job
            return EventStream(as_events(answering.gains(), write, answering.usage_at_end), job)
        gains = await while_connected(request, answering.best())
        body_json = engine.write(job, lambda: to_json(write(gains, answering.usage)))
        return json_response(await while_connected(request, body_json))


def _n_samples(body: CompletionRequest) -> int:
    return body.best_of or body.n or 1


def _check(engine: Engine, body: CompletionRequest) -> None:
    """Raises ApiError for fields that contradict each other or the model."""
    engine.check_model(body.model)
    if body.suffix is not None:
        raise ApiError("suffix is not supported: GPT-2 writes on from a prompt, not towards an end", param="suffix")
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise ApiError(f"best_of is {body.best_of}, n is {body.n}: the best n are of best_of", param="best_of")
    if body.best_of is not None and body.best_of > (body.n or 1) and body.stream:
        raise ApiError("best_of is known at the end only and cannot be streamed", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError("max_tokens is 0: nothing would come back; with echo it shows the prompt", param="max_tokens")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options goes with stream", param="stream_options")


class Answering(Counted):
    """One request on its way to a reply: `prepare`, then `gains` or `best`, then `usage`."""

    def __init__(self, engine: Engine, job: Job, body: CompletionRequest) -> None:
        super().__init__(body.stream_options)
        self._engine, self._job, self._body = engine, job, body
        self._plan = Plan([], [])
        self._task: TaskRequest | None = None

    async def prepare(self) -> None:
        """Read the prompts. Raises ApiError."""
        with preparing():
            self._task = task_plan.read_task(self._engine, self._job, self._body)
            self._plan = await self._engine.prepare(self._job, self._make_plan, has_form=self._has_form)
            self._engine.reserve(self._job, self._plan.n_bytes)
            self._n_prompt = sum(len(prompt.ids) for prompt in self._plan.prompts)

    @property
    def _has_form(self) -> bool:
        return any(getattr(self._body, name) is not None for name in READERS)

    def _make_plan(self) -> Plan:
        engine, body = self._engine, self._body
        if self._task and not self._task.writes:
            return Plan([], [])
        if self._task:
            prompts = [task_plan.write_prompt(engine.model, self._task, text) for text in self._task.texts]
        else:
            n_new = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
            given = {"temperature": 1.0, **body.generation_options(), "max_new_tokens": n_new or 1}
            options = make_limited(engine, self._job, given)
            prompts = [encode_one(engine, self._job, prompt, options) for prompt in as_prompts(body.prompt)]
        if body.max_tokens == 0 or (body.echo and body.logprobs is not None):
            self._check_scored([len(prompt.ids) for prompt in prompts])
        n_bytes = check_reply(engine, prompts, _n_samples(body), body.logprobs, echo=bool(body.echo))
        if body.max_tokens == 0:
            return Plan(prompts, [], n_bytes)
        ranks = _n_samples(body) > (body.n or 1)
        n_top = body.logprobs if body.logprobs is not None else 0 if ranks or self._task else None
        return Plan(prompts, make_rows(engine, self._job, prompts, _n_samples(body), n_top), n_bytes)

    def _check_scored(self, lengths: list[int]) -> None:
        n_positions = self._engine.model.config.n_positions
        if max(lengths) > n_positions + 1:  # the last is predicted only
            raise too_long(f"a prompt of {max(lengths)} tokens passes the {n_positions + 1} that are scored at once")

    async def gains(self) -> AsyncIterator[Gain]:
        """The reply, as it comes. Raises ApiError."""
        if self._task and not self._task.writes:
            for index in range(len(self._task.texts)):
                yield await self._engine.run_aside(self._job, partial(self._perform, index))
            return
        if self._body.echo:
            for index in range(len(self._plan.prompts)):
                for gain in await self._engine.run_aside(self._job, partial(self._echo, index)):
                    yield gain
        async for gain in self._written():
            yield gain

    async def _written(self) -> AsyncIterator[Gain]:
        model, rows, prompts = self._engine.model, self._plan.rows, self._plan.prompts
        shows = self._body.logprobs is not None
        continuations = [
            Continuation(model, row, index, len(prompts[row.place.prompt_index].text), shows_tokens=shows)
            for index, row in enumerate(rows)
        ]
        async for row, gain in decode(self._engine, self._job, rows, continuations):
            if gain.end:
                self._n_new += gain.end.n_tokens
                if self._task:
                    n_truncated = prompts[row.place.prompt_index].n_truncated
                    gain.end = task_plan.read_answer(self._task, row.completion(), n_truncated)
            yield gain

    def _perform(self, index: int) -> Gain:
        self._check_connected()
        assert self._task
        try:
            self._n_prompt += len(encode(self._engine.model, self._task.texts[index]))
            return task_plan.perform(self._engine.model_of(self._job), self._task, index)
        except (TypeError, ValueError) as error:
            raise ApiError(str(error)) from None

    def _echo(self, index: int) -> list[Gain]:
        """The prompt itself, with its tokens where they are asked for, in every sample of it."""
        self._check_connected()
        prompt, n = self._plan.prompts[index], _n_samples(self._body)
        tokens = []
        if self._body.logprobs is not None and prompt.text:  # an empty one is a token that is not shown
            tokens = read_prompt(self._engine.model_of(self._job), prompt.ids, self._body.logprobs, prompt.places)
        is_all = self._body.max_tokens == 0
        return [
            Gain(sample, prompt.text, list(tokens), End(Details(finish_reason="length")) if is_all else None)
            for sample in range(index * n, index * n + n)
        ]

    def _check_connected(self) -> None:
        if self._job.is_cancelled():
            raise STOPPED

    async def best(self) -> list[Gain]:
        """The whole reply: of `best_of` continuations of each prompt the likeliest `n`."""
        gains, n, of = await collect(self.gains()), self._body.n or 1, _n_samples(self._body)
        if of == n:
            return gains
        chosen = []
        for begin in range(0, len(gains), of):
            samples = sorted(gains[begin : begin + of], key=lambda gain: -(gain.end.mean_logprob if gain.end else 0.0))
            chosen += samples[:n]
        for index, gain in enumerate(chosen):
            gain.index = index
        return chosen
