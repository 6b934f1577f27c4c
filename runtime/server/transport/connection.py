"""uvicorn's connection, with an end to what a client can hold open: half a request, a reply that nobody reads."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.server.errors import ApiError
from runtime.server_settings import Settings

_FULL = ApiError("the server has as many clients as it takes; try again soon", status=503, code="server_busy").json()


class Connection(H11Protocol):
    """Gives up a client that keeps it waiting for `client_timeout` seconds, or for longest where there are too many."""

    settings: ClassVar[Settings]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for a request."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._rank = (False, self.loop.time())  # whether it was answered before, since when it may ask
        if len(self.connections) > self.settings.connections:
            self._make_room()
        self._give_up_later()

    def _make_room(self) -> None:
        """Give up who has been asking for longest; where all have asked, turn this client away."""
        asking = [one for one in self.connections if isinstance(one, Connection) and one.is_asking and one is not self]
        if asking:
            min(asking, key=lambda one: one._rank).transport.abort()
            return
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        self.transport.write(f"{head}Content-Length: {len(_FULL)}\r\nConnection: close\r\n\r\n{_FULL}".encode())
        self.transport.close()

    @property
    def is_asking(self) -> bool:
        """Whether its request is not whole."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        """Read on; the head of a request has to be whole in time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._go_on()
        elif self._timer is None:
            self._give_up_later()

    def pause_writing(self) -> None:
        """The client does not read; it has so long to begin."""
        super().pause_writing()
        self._give_up_later()

    def resume_writing(self) -> None:
        """It reads."""
        super().resume_writing()
        self._go_on()

    def on_response_complete(self) -> None:
        """The end of a reply, which the client has to read in time where it is the last."""
        super().on_response_complete()
        self._rank = (True, self.loop.time())
        if self.transport.is_closing():
            self._give_up_later()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more is asked."""
        super().timeout_keep_alive_handler()
        self._give_up_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        super().connection_lost(exc)
        self._go_on()

    def _give_up_later(self) -> None:
        self._go_on()
        self._timer = self.loop.call_later(self.settings.client_timeout, self.transport.abort)

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
