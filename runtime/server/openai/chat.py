"""/v1/chat/completions, where the checkpoint has a chat template."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response

from runtime.options import FORMS
from runtime.server.engine.engine import Engine
from runtime.server.engine.job import Job
from runtime.server.engine.served_row import ServedRow
from runtime.server.errors import ApiError, preparing
from runtime.server.openai.completions import STREAMED
from runtime.server.openai.exchange import EventStream, decode, json_response, while_connected
from runtime.server.openai.fields import ChatRequest
from runtime.server.openai.gain import Continuation, Gain, collect
from runtime.server.openai.plan import check_reply, encode_rendered, make_limited, make_rows
from runtime.server.openai.reply import ChatReply, Counted, as_events, chat_writer, to_json
from runtime.server.transport.json_route import JsonRoute

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", response_model=ChatReply, responses=STREAMED)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """The next message of a conversation."""
    engine: Engine = request.app.state.engine
    _check(engine, body)
    with contextlib.ExitStack() as stack:
        job = stack.enter_context(engine.admit(body.n or 1))
        talk = Talk(engine, job, body)
        await while_connected(request, talk.prepare())
        shows, is_stream = bool(body.logprobs), bool(body.stream)
        write = chat_writer(engine.model_id, engine.names, shows_tokens=shows, is_stream=is_stream)
        if is_stream:
            stack.pop_all()  # the stream closes the job
            return EventStream(as_events(talk.gains(), write, talk.usage_at_end), job)
        gains = await while_connected(request, collect(talk.gains()))
        reply = engine.write(job, lambda: to_json(write(gains, talk.usage)))
        return json_response(await while_connected(request, reply))


def _check(engine: Engine, body: ChatRequest) -> None:
    """Raises ApiError for fields that contradict each other or the model."""
    engine.check_model(body.model)
    if engine.chat_template is None:
        raise ApiError(engine.no_chat, param="messages", code="no_chat_template")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs goes with logprobs", param="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError("max_tokens and max_completion_tokens are the same; give one", param="max_tokens")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options goes with stream", param="stream_options")


class Talk(Counted):
    """One request on its way to a reply: `prepare`, then `gains`, then `usage`."""

    def __init__(self, engine: Engine, job: Job, body: ChatRequest) -> None:
        super().__init__(body.stream_options)
        self._engine, self._job, self._body = engine, job, body
        self._rows: list[ServedRow] = []
        self._n_before = 0  # characters of the prompt
        self._n_bytes = 0  # of the reply, see `check_reply`

    async def prepare(self) -> None:
        """Write the prompt. Raises ApiError."""
        with preparing():
            has_form = any(getattr(self._body, name) is not None for name in FORMS)
            await self._engine.prepare(self._job, self._make_rows, has_form=has_form)
            self._engine.reserve(self._job, self._n_bytes)

    def _make_rows(self) -> None:
        engine, body = self._engine, self._body
        assert engine.chat_template
        given = {"temperature": 1.0, "overflow": "stop", "special_tokens": True, **body.generation_options()}
        n_positions = engine.model.config.n_positions
        n_new = body.max_completion_tokens or body.max_tokens or min(n_positions, engine.settings.max_tokens)
        options = make_limited(engine, self._job, {**given, "max_new_tokens": n_new})
        messages = [message.model_dump(exclude_none=True) for message in body.messages]
        prompt = encode_rendered(engine, self._job, engine.chat_template.render(messages), options)
        self._n_prompt, self._n_before = len(prompt.ids), len(prompt.text)
        n_top = (body.top_logprobs or 0) if body.logprobs else None
        self._n_bytes = check_reply(engine, [prompt], body.n or 1, n_top, echo=False)
        self._rows = make_rows(engine, self._job, [prompt], body.n or 1, n_top)

    async def gains(self) -> AsyncIterator[Gain]:
        """The reply, as it comes. Raises ApiError."""
        model, shows = self._engine.model, bool(self._body.logprobs)
        continuations = [
            Continuation(model, row, index, self._n_before, shows_tokens=shows) for index, row in enumerate(self._rows)
        ]
        async for _, gain in decode(self._engine, self._job, self._rows, continuations):
            self._n_new += gain.end.n_tokens if gain.end else 0
            yield gain
