"""A request and its reply over HTTP: at once or as a stream, for as long as the client stays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from runtime.server.engine.engine import Engine
from runtime.server.engine.job import Job
from runtime.server.engine.served_row import ServedRow
from runtime.server.errors import CLOSED_REQUEST, ApiError, as_api_error, contain, server_error
from runtime.server.openai.gain import Continuation, Gain

T = TypeVar("T")
STOPPED = server_error("the server is being stopped", 503)


class EventStream(StreamingResponse):
    """Server-sent events; the job ends with the stream, whoever ends it, even before it began."""

    def __init__(self, events: AsyncIterator[bytes], job: Job) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        with self._job:
            await super().__call__(scope, receive, send)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which ends when the client leaves. Raises ApiError then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError("the client has left", status=CLOSED_REQUEST)
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def decode(
    engine: Engine, job: Job, rows: Sequence[ServedRow], continuations: Sequence[Continuation]
) -> AsyncIterator[tuple[ServedRow, Gain]]:
    """What rows gain, as their clients see it. Raises ApiError when the server stops or a pass failed."""
    start, seen, of_row = time.monotonic(), False, dict(zip(rows, continuations, strict=True))
    try:
        async for row, part in job.decode(rows):
            if not seen:
                engine.metrics.first_token.observe(time.monotonic() - start)
                seen = True
            if part.completion:
                engine.metrics.count(part.completion)
            if job.is_stopped and part.completion and part.completion.finish_reason == "cancelled":
                raise STOPPED
            yield row, contain(partial(of_row[row].read, part))
    except (TypeError, ValueError) as error:  # a row's own: its options leave no token, say
        raise as_api_error(error) from None
    except ApiError:
        raise
    except Exception as error:  # of memory, onnxruntime's or the tokenizer's
        raise server_error(str(error) or type(error).__name__) from error


def json_response(body: str) -> Response:
    """A reply that is JSON already."""
    return Response(body, media_type="application/json")
