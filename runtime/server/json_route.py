"""Routes that parse large JSON one request at a time, so that many such requests do not block the others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

# Smaller bodies are parsed in less than a millisecond.
LARGE = 2**14  # bytes


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Pause the garbage collector, which would take most of the time of parsing JSON with many lists."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Request(Request):
    async def json(self) -> Any:
        """See `Request.json`.

        Parsing a megabyte blocks the event loop for a tenth of a second. Large bodies take turns, so that other work
        runs in between.
        """
        if len(await self.body()) < LARGE:
            return await super().json()
        async with self.app.state.engines.reading:
            began = time.monotonic()
            with _no_collections():
                found = await super().json()
            # Leave the event loop to others for as long as the parsing took.
            await asyncio.sleep(time.monotonic() - began)
            return found


class JsonRoute(APIRoute):
    """See `fastapi.routing.APIRoute`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute.get_route_handler`."""
        handle = super().get_route_handler()

        async def handle_in_turn(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return handle_in_turn
