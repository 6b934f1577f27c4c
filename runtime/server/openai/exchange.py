"""Sends a reply over HTTP, whole or as a stream, while the client is connected."""

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
from runtime.server.openai.delta import Choice, Delta

T = TypeVar("T")


class EventStream(StreamingResponse):
    """Server-sent events. The job ends when the stream ends, whoever ends it, even before the first event."""

    def __init__(self, events: AsyncIterator[bytes], job: Job) -> None:
        # nginx keeps a reply back until it is whole, unless X-Accel-Buffering says otherwise.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        with self._job:
            await super().__call__(scope, receive, send)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. Raises ApiError then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
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


def stopped() -> ApiError:
    """The error of a request that the server ends because it is being stopped."""
    return server_error("the server is being stopped", 503)


async def decode(
    engine: Engine, job: Job, rows: Sequence[ServedRow], choices: Sequence[Choice]
) -> AsyncIterator[Delta]:
    """Decode rows: each part of a row as a delta of its choice.

    Raises ApiError when the server stops, or where a pass failed.
    """
    start = time.monotonic()
    seen = False
    choice_of = dict(zip(rows, choices, strict=True))
    try:
        async for row, part in job.decode(rows):
            if not seen:
                engine.metrics.first_token.observe(time.monotonic() - start)
                seen = True
            if part.completion:
                engine.metrics.count(part.completion, row.n_cached)
            if job.is_stopped and part.completion and part.completion.finish_reason == "cancelled":
                raise stopped()
            yield contain(partial(choice_of[row].read, part))
    except (TypeError, ValueError) as error:
        # An error of one row, such as options that leave no token to choose.
        raise as_api_error(error) from None
    except ApiError:
        raise
    except Exception as error:
        # Memory, onnxruntime or the tokenizer.
        raise server_error(str(error) or type(error).__name__) from error


def json_response(body: str) -> Response:
    """A reply whose body is JSON text."""
    return Response(body, media_type="application/json")
