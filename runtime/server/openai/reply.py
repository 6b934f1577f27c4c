"""OpenAI's replies: text completions, chat completions, and the chunks of both."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Literal

from pydantic import BaseModel

from runtime.server.engine.token_names import Token, TokenNames
from runtime.server.errors import ApiError, contain, server_error
from runtime.server.openai.fields import StreamOptions
from runtime.server.openai.gain import Details, FinishReason, Gain

_log = logging.getLogger("gpt2_edge.server")


class Usage(BaseModel):
    """Counts of tokens: each prompt once, every continuation written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


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


Write = Callable[[Sequence[Gain], Usage | None], BaseModel]  # the reply, or a chunk of it, that holds some gains


def completion_writer(model_id: str, names: TokenNames, *, shows_tokens: bool) -> Write:
    """Text completions; a chunk has the form of the whole."""
    id_, created = f"cmpl-{uuid.uuid4().hex}", int(time.time())

    def write(gains: Sequence[Gain], usage: Usage | None) -> CompletionReply:
        choices = [_choice(gain, _logprobs(gain.tokens, names) if shows_tokens else None) for gain in gains]
        return CompletionReply(
            id=id_, object="text_completion", created=created, model=model_id, choices=choices, usage=usage
        )

    return write


def chat_writer(model_id: str, names: TokenNames, *, shows_tokens: bool, is_stream: bool) -> Write:
    """Chat completions."""
    id_, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    kind: Literal["chat.completion", "chat.completion.chunk"]
    kind = "chat.completion.chunk" if is_stream else "chat.completion"

    def write(gains: Sequence[Gain], usage: Usage | None) -> ChatReply:
        choices = [
            _chat_choice(gain, _chat_logprobs(gain.tokens, names) if shows_tokens else None, is_stream=is_stream)
            for gain in gains
        ]
        return ChatReply(id=id_, object=kind, created=created, model=model_id, choices=choices, usage=usage)

    return write


class Counted:
    """The tokens of a request and its reply, counted as they come."""

    def __init__(self, stream_options: StreamOptions | None) -> None:
        self._n_prompt = self._n_new = 0
        self._stream_options = stream_options

    @property
    def usage(self) -> Usage:
        """The counts so far."""
        n_prompt, n_new = self._n_prompt, self._n_new
        return Usage(prompt_tokens=n_prompt, completion_tokens=n_new, total_tokens=n_prompt + n_new)

    def usage_at_end(self) -> Usage | None:
        """The counts, where the stream is to end with them."""
        options = self._stream_options
        return self.usage if options and options.include_usage else None


def to_json(reply: BaseModel) -> str:
    """As JSON; what is not set is left out."""
    return reply.model_dump_json(exclude_unset=True)


def _choice(gain: Gain, logprobs: Logprobs | None) -> Choice:
    if gain.end is None:
        return Choice(text=gain.text, index=gain.index, logprobs=logprobs, finish_reason=None)
    return Choice(
        text=gain.text,
        index=gain.index,
        logprobs=logprobs,
        finish_reason=gain.end.finish_reason,
        gpt2_edge=gain.end.details,
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


def _chat_choice(gain: Gain, logprobs: ChatLogprobs | None, *, is_stream: bool) -> ChatChoice:
    message = ChatMessage(role="assistant", content=gain.text)
    choice = ChatChoice(index=gain.index, logprobs=logprobs, finish_reason=None)
    if is_stream:
        choice.delta = message
    else:
        choice.message = message
    if gain.end is not None:
        choice.finish_reason, choice.gpt2_edge = gain.end.finish_reason, gain.end.details
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


async def as_events(
    gains: AsyncIterator[Gain], write: Write, usage: Callable[[], Usage | None]
) -> AsyncIterator[bytes]:
    """A stream of server-sent events; an error is the last one of it."""
    try:
        async for gain in gains:
            yield _event(contain(partial(_write_json, write, gain)))
        if counted := usage():
            yield _event(to_json(write([], counted)))
    except ApiError as error:
        yield _event(error.json())
    except Exception as error:  # the head of the reply is sent: only the stream can still say so
        _log.exception("a stream failed")
        yield _event(server_error(f"the server failed ({type(error).__name__}); its log says more").json())
    yield _event("[DONE]")


def _write_json(write: Write, gain: Gain) -> str:
    return to_json(write([gain], None))


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
