"""Server-sent events: JSON texts, what is told to a request that waits, and errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from runtime.server.errors import ApiError, server_error

POSITION_SECONDS = 0.5  # without news, before a client is told its place in the queue
_log = logging.getLogger("gpt2_edge.server")


async def as_events(texts: AsyncIterator[str], position: Callable[[], int]) -> AsyncIterator[bytes]:
    """An event for each JSON text, and the last one, [DONE]. An error becomes the event before it.

    position: the request's place in the queue, 1 for the next one, and 0 once it has begun. While the request waits, it
    is told in comments (`: queued 3`), which clients of server-sent events skip.
    """
    try:
        async for told in _with_positions(texts, position):
            yield f": queued {told}\n\n".encode() if isinstance(told, int) else _event(told)
    except ApiError as error:
        yield _event(error.json())
    except Exception as error:
        # The status has been sent. Only the stream can still report the error.
        _log.exception("a stream failed")
        yield _event(server_error(f"the server failed ({type(error).__name__}); its log says more").json())
    yield _event("[DONE]")


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


async def _with_positions(texts: AsyncIterator[str], position: Callable[[], int]) -> AsyncIterator[str | int]:
    """The texts; before the first one, the place in the queue whenever it has changed."""
    told = 0
    first = asyncio.ensure_future(anext(texts, None))
    try:
        while not (await asyncio.wait({first}, timeout=POSITION_SECONDS))[0]:
            now = position()
            if now and now != told:
                told = now
                yield told
    finally:
        # The client may have left.
        first.cancel()
    text = first.result()
    if text is None:
        return
    yield text
    async for text in texts:
        yield text
