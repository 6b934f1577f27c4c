"""/v1/chat/completions, where the checkpoint has a chat template."""

from __future__ import annotations

import contextlib

from fastapi import APIRouter, Request, Response

from runtime.server.chat_templates.chat_template import ChatTemplate
from runtime.server.engine.engine import Engine
from runtime.server.engine.engines import find_engine
from runtime.server.errors import ApiError
from runtime.server.json_route import JsonRoute
from runtime.server.openai.answer import ChatAnswer
from runtime.server.openai.fields import ChatRequest
from runtime.server.openai.reply import STREAMED, ChatReply, chat_writer
from runtime.server.openai.respond import respond

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", response_model=ChatReply, responses=STREAMED)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """The next message of a conversation."""
    engine = find_engine(request, body.model)
    template = _check(engine, body)
    with contextlib.ExitStack() as stack:
        job = stack.enter_context(engine.admit(body.n or 1))
        answer = ChatAnswer(engine, job, body, template)
        write = chat_writer(
            engine.model_id, engine.names, shows_tokens=bool(body.logprobs), is_stream=bool(body.stream)
        )
        return await respond(request, answer, write, stack)


def _check(engine: Engine, body: ChatRequest) -> ChatTemplate:
    """The template. Raises ApiError where there is none, and for fields that contradict each other or the model."""
    engine.check_writes()
    if engine.chat_template is None:
        raise ApiError(engine.no_chat, param="messages", code="no_chat_template")
    if body.top_logprobs and not body.logprobs:
        raise ApiError("top_logprobs goes with logprobs", param="top_logprobs")
    limits = (body.max_tokens, body.max_completion_tokens)
    if None not in limits and limits[0] != limits[1]:
        told = f"max_tokens is {limits[0]} and max_completion_tokens {limits[1]}: they mean the same; give one"
        raise ApiError(told, param="max_tokens")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options goes with stream", param="stream_options")
    return engine.chat_template
