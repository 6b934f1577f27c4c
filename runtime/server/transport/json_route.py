"""Routes that read large JSON one request at a time, so that a flood of it leaves room for others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

LARGE = 2**14  # bytes; smaller ones are read in under a millisecond


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """A request of many lists makes the garbage collector look at all of them ten times: that takes longest."""
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

        Reading a megabyte keeps the event loop for a tenth of a second. In turns, whatever else is ready goes on in
        between.
        """
        if len(await self.body()) < LARGE:
            return await super().json()
        async with self.app.state.engine.reading:
            began = time.monotonic()
            with _no_collections():
                found = await super().json()
            # as long again for others
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
