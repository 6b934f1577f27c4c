"""/surprisal: the surprisal of every token and every word of given texts, as `runtime.surprisal` has it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from runtime._math import perplexity
from runtime.scoring import surprisal as scoring
from runtime.scoring.words import Span, vocabulary
from runtime.server.engine.engine import Engine
from runtime.server.engine.engines import find_engine
from runtime.server.engine.job import Job
from runtime.server.errors import CONTEXT_LENGTH, ApiError, contain, preparing
from runtime.server.json_route import JsonRoute
from runtime.server.openai.events import as_events
from runtime.server.openai.exchange import EventStream, json_response, while_connected
from runtime.server.openai.fields import MAX_ALTERNATIVES, MAX_ENTRIES, Fields
from runtime.server.openai.plan import ENTRY_BYTES
from runtime.server.openai.reply import STREAMED
from runtime.tokenization.encode import encode

MAX_CHARACTERS = 2**17  # of all texts; as many as a prompt of GPT-2 may have, where a prompt may not have more
router = APIRouter(route_class=JsonRoute)
_LN2 = math.log(2)
_TOKEN_ENTRIES = 4  # a token's text, numbers and share of a word are as large as so many alternatives
_PROGRESS_STEPS = 100  # of a stream, at most


class SurprisalRequest(Fields):
    """A text, or several."""

    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_ENTRIES, fail_fast=True)]
    model: str | None = Field(None, description="the model that is served, or null")
    top: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES, description="alternatives of each token; default 0")
    bos: bool | None = Field(None, description="score the first token after the beginning of a text; default true")
    word_correction: bool | None = Field(
        None, description="count the end of a word to the word itself, not to the next one; default true"
    )
    stream: bool | None = Field(None, description="tell the progress, as server-sent events; default false")


class Alternative(BaseModel):
    """One of the likeliest tokens in the place of a token; its surprisal in bits."""

    text: str
    id: int
    surprisal: float


class ScoredToken(BaseModel):
    """A token: `span` is its characters in the text, `rank` 1 that of the likeliest token. Surprisals are in bits."""

    text: str
    span: Span
    id: int
    surprisal: float | None
    rank: int | None
    entropy: float | None
    top: list[Alternative]


class ScoredWord(BaseModel):
    """A word; `tokens`: begin and end of its tokens among those of the text."""

    text: str
    span: Span
    surprisal: float | None
    tokens: Span


class ScoredText(BaseModel):
    """A text: what `gpt2-edge surprisal --jsonl` prints, the sum in bits, and the perplexity of a token."""

    text: str
    tokens: list[ScoredToken]
    words: list[ScoredWord]
    total: float
    perplexity: float | None


class SurprisalReply(BaseModel):
    """The texts in their order."""

    results: list[ScoredText]


class Progress(BaseModel):
    """How much of all texts is measured, from 0 to 1."""

    progress: float


@router.post("/surprisal", response_model=SurprisalReply, responses=STREAMED)
async def measure_surprisal(body: SurprisalRequest, request: Request) -> Response:
    """The surprisal of every token and every word of a text, in bits."""
    engine = find_engine(request, body.model)
    engine.check_writes()
    texts = [body.input] if isinstance(body.input, str) else body.input
    _check_size(engine, texts)
    with contextlib.ExitStack() as stack, preparing():
        job = stack.enter_context(engine.admit(len(texts)))
        work = _Measurement(engine, job, texts, body)
        await while_connected(request, work.prepare())
        if body.stream:
            stack.pop_all()
            return EventStream(as_events(work.stream(), partial(engine.queue_position, job)), job)
        return json_response(await while_connected(request, work.measure()))


def _check_size(engine: Engine, texts: list[str]) -> None:
    """Refuse what is too long, before it is made tokens: the tokenizer takes more than linear time for a long word."""
    most = max(MAX_CHARACTERS, engine.max_characters)
    if (n := sum(map(len, texts))) > most:
        told = f"input is {n:,} characters; at most {most:,} are measured at once: send it in parts"
        raise ApiError(told, param="input", code=CONTEXT_LENGTH)


class _Measurement:
    """The work for one request. Call `prepare`, then `measure` or `stream`."""

    def __init__(self, engine: Engine, job: Job, texts: list[str], body: SurprisalRequest) -> None:
        self._engine = engine
        self._job = job
        self._texts = texts
        self._settings = scoring.Settings(
            top=body.top or 0, bos=body.bos is not False, word_correction=body.word_correction is not False
        )
        self._n_measured = 0  # characters
        self._progress: asyncio.Queue[float | None] = asyncio.Queue()

    async def prepare(self) -> None:
        """Reserve room for the reply. Raises ApiError where it would be too large."""
        n_tokens = await self._engine.prepare(self._job, self._count)
        n_bytes = n_tokens * (_TOKEN_ENTRIES + self._settings.top) * ENTRY_BYTES
        if n_bytes > (most := self._engine.settings.max_reply_bytes):
            told = (
                f"the reply may have {n_bytes:,} bytes; this server's limit is {most:,}: lower top, or send less text"
            )
            raise ApiError(told, param="input", code="reply_too_large")
        self._engine.reserve(self._job, n_bytes)

    def _count(self) -> int:
        """Tokens of all texts."""
        # Made here, since it takes a while for the first request, and then is kept.
        vocabulary(self._engine.model)
        return sum(len(encode(self._engine.model, text)) for text in self._texts)

    async def measure(self) -> str:
        """The reply as JSON. Raises ApiError."""
        return await self._finish(await self._engine.run_aside(self._job, lambda: self._run(lambda _: None)))

    async def stream(self) -> AsyncIterator[str]:
        """Progress and then the reply, as JSON. Raises ApiError."""
        loop = asyncio.get_running_loop()

        def tell(share: float) -> None:
            loop.call_soon_threadsafe(self._progress.put_nowait, share)

        work = asyncio.ensure_future(self._engine.run_aside(self._job, lambda: self._run(tell)))
        work.add_done_callback(lambda _: self._progress.put_nowait(None))
        try:
            while (share := await self._progress.get()) is not None:
                yield Progress(progress=share).model_dump_json()
        finally:
            work.cancel()
        with preparing():
            found = work.result()
        yield await self._finish(found)

    def _run(self, tell: Callable[[float], None]) -> list[scoring.Surprisal]:
        """In the thread of passes outside of the batch."""
        n_characters = sum(map(len, self._texts))
        n_told = 0

        def count(n: int) -> None:
            nonlocal n_told
            self._n_measured += n
            step = self._n_measured * _PROGRESS_STEPS // n_characters
            if step > n_told:
                n_told = step
                tell(self._n_measured / n_characters)

        self._job.check()
        model = self._engine.model_of(self._job)
        return list(scoring.measure(model, self._texts, self._settings, progress=count))

    async def _finish(self, found: list[scoring.Surprisal]) -> str:
        self._engine.metrics.scored.inc(sum(len(one.tokens) for one in found))
        return await self._engine.write(self._job, lambda: contain(lambda: _write(found)))


def _write(found: list[scoring.Surprisal]) -> str:
    return SurprisalReply(results=[_scored(one) for one in found]).model_dump_json()


def _scored(found: scoring.Surprisal) -> ScoredText:
    n_scored = sum(token.surprisal is not None for token in found.tokens)
    return ScoredText(
        text=found.text,
        tokens=[_token(token) for token in found.tokens],
        words=[
            ScoredWord(text=word.text, span=word.span, surprisal=word.surprisal, tokens=word.tokens)
            for word in found.words
        ],
        total=found.total,
        perplexity=perplexity(-found.total * _LN2, n_scored) if n_scored else None,
    )


def _token(token: scoring.Token) -> ScoredToken:
    top = [Alternative(text=one.text, id=one.id, surprisal=one.surprisal) for one in token.top]
    return ScoredToken(
        text=token.text,
        span=token.span,
        id=token.id,
        surprisal=token.surprisal,
        rank=token.rank,
        entropy=token.entropy,
        top=top,
    )
