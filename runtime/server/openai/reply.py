"""OpenAI's replies: text completions, chat completions, and the chunks of both."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel

from runtime.server.engine.token_names import Token, TokenNames
from runtime.server.errors import ErrorReply, contain
from runtime.server.openai.delta import Delta, Details, FinishReason

# What the routes say of their replies in the API's description.
ERRORS: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorReply, "description": "what was wrong"}}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "object", "properties": {"data": {"type": "string"}}}}},
        "description": "the reply; with stream its chunks, as server-sent events that end with [DONE]",
    },
    **ERRORS,
}


class PromptTokensDetails(BaseModel):
    """Of the tokens of the prompts."""

    # not computed again: earlier requests, or requests under way, begin with the same ones
    cached_tokens: int


class Usage(BaseModel):
    """Counts of tokens: each prompt once, every continuation written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Logprobs(BaseModel):
    """The tokens of a text; offsets are characters of prompt and continuation together."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    """One continuation, or more of it."""

    text: str
    index: int
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    gpt2_edge: Details | None = None


class CompletionReply(BaseModel):
    """A reply of /v1/completions, and a chunk of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class TokenLogprob(BaseModel):
    """A token, as chat completions show it."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(TokenLogprob):
    """A token and its alternatives."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of a message."""

    content: list[ContentLogprob]


class ChatMessage(BaseModel):
    """What the model says, or more of it."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One reply to a conversation; `message` in a whole one, `delta` in a chunk."""

    index: int
    message: ChatMessage | None = None
    delta: ChatMessage | None = None
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    gpt2_edge: Details | None = None


class ChatReply(BaseModel):
    """A reply of /v1/chat/completions, and a chunk of its stream."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


# Makes the reply, or a chunk of it, from deltas.
Write = Callable[[Sequence[Delta], Usage | None], BaseModel]


def completion_writer(model_id: str, names: TokenNames, *, shows_tokens: bool) -> Write:
    """Writes text completions. A chunk has the same form as the whole reply."""
    id_ = f"cmpl-{uuid.uuid4().hex}"
    created = int(time.time())

    def write(deltas: Sequence[Delta], usage: Usage | None) -> CompletionReply:
        choices = [_choice(delta, _logprobs(delta.tokens, names) if shows_tokens else None) for delta in deltas]
        return CompletionReply(
            id=id_, object="text_completion", created=created, model=model_id, choices=choices, usage=usage
        )

    return write


def chat_writer(model_id: str, names: TokenNames, *, shows_tokens: bool, is_stream: bool) -> Write:
    """Writes chat completions."""
    id_ = f"chatcmpl-{uuid.uuid4().hex}"
    created = int(time.time())
    kind: Literal["chat.completion", "chat.completion.chunk"]
    kind = "chat.completion.chunk" if is_stream else "chat.completion"

    def write(deltas: Sequence[Delta], usage: Usage | None) -> ChatReply:
        choices = [
            _chat_choice(delta, _chat_logprobs(delta.tokens, names) if shows_tokens else None, is_stream=is_stream)
            for delta in deltas
        ]
        return ChatReply(id=id_, object=kind, created=created, model=model_id, choices=choices, usage=usage)

    return write


def to_json(reply: BaseModel) -> str:
    """The reply as JSON, without the fields that were never set."""
    return reply.model_dump_json(exclude_unset=True)


def _choice(delta: Delta, logprobs: Logprobs | None) -> Choice:
    if delta.end is None:
        return Choice(text=delta.text, index=delta.index, logprobs=logprobs, finish_reason=None)
    return Choice(
        text=delta.text,
        index=delta.index,
        logprobs=logprobs,
        finish_reason=delta.end.finish_reason,
        gpt2_edge=delta.end.details,
    )


def _logprobs(tokens: Sequence[Token], names: TokenNames) -> Logprobs:
    return Logprobs(
        tokens=[names.name(token) for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[
            None if token.logprob is None else {one.name: one.logprob for one in names.alternatives(token)}
            for token in tokens
        ],
        text_offset=[token.offset for token in tokens],
    )


def _chat_choice(delta: Delta, logprobs: ChatLogprobs | None, *, is_stream: bool) -> ChatChoice:
    message = ChatMessage(role="assistant", content=delta.text)
    choice = ChatChoice(index=delta.index, logprobs=logprobs, finish_reason=None)
    if is_stream:
        choice.delta = message
    else:
        choice.message = message
    if delta.end is not None:
        choice.finish_reason = delta.end.finish_reason
        choice.gpt2_edge = delta.end.details
    return choice


def _chat_logprobs(tokens: Sequence[Token], names: TokenNames) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            ContentLogprob(
                token=names.name(token),
                logprob=token.logprob or 0.0,
                bytes=names.bytes_of(token),
                top_logprobs=[
                    TokenLogprob(token=one.name, logprob=one.logprob, bytes=one.bytes_)
                    for one in names.alternatives(token)
                ],
            )
            for token in tokens
        ]
    )


async def write_each(
    deltas: AsyncIterator[Delta], write: Write, usage: Callable[[], Usage | None]
) -> AsyncIterator[str]:
    """The chunks of a stream as JSON: one for each delta, and one for the usage where it is asked for."""
    async for delta in deltas:
        yield contain(partial(_write_json, write, delta))
    if counted := usage():
        yield to_json(write([], counted))


def _write_json(write: Write, delta: Delta) -> str:
    return to_json(write([delta], None))
