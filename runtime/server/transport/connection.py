"""uvicorn's connection with time limits, for clients that send half a request or do not read their reply."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.server.errors import ApiError
from runtime.server_settings import Settings

_FULL = ApiError("the server has as many clients as it takes; try again soon", status=503, code="server_busy").json()


class Connection(H11Protocol):
    """Closes a connection whose client keeps it waiting for `client_timeout` seconds.

    If there are too many connections, the one that has been waiting for its client the longest is closed earlier.
    """

    settings: ClassVar[Settings]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        # Whether the client was answered before, and since when it may send a request.
        self._rank = (False, self.loop.time())
        if len(self.connections) > self.settings.connections:
            self._make_room()
        self._give_up_later()

    def _make_room(self) -> None:
        """Close the connection that waits longest for its request; if none waits, turn this client away."""
        asking = [one for one in self.connections if isinstance(one, Connection) and one.is_asking and one is not self]
        if asking:
            min(asking, key=lambda one: one._rank).transport.abort()
            return
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        self.transport.write(f"{head}Content-Length: {len(_FULL)}\r\nConnection: close\r\n\r\n{_FULL}".encode())
        self.transport.close()

    @property
    def is_asking(self) -> bool:
        """Whether the connection waits for a request or the rest of one."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        """Read data; the head of a request must be complete in time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._go_on()
        elif self._timer is None:
            self._give_up_later()

    def pause_writing(self) -> None:
        """The client does not read its reply: give it a limited time to go on."""
        super().pause_writing()
        self._give_up_later()

    def resume_writing(self) -> None:
        """The client reads again: stop the timer."""
        super().resume_writing()
        self._go_on()

    def on_response_complete(self) -> None:
        """The end of a reply. If the connection closes after it, the client must read it in time."""
        super().on_response_complete()
        self._rank = (True, self.loop.time())
        if self.transport.is_closing():
            self._give_up_later()

    def timeout_keep_alive_handler(self) -> None:
        """The client has sent no further request: close the connection, in limited time."""
        super().timeout_keep_alive_handler()
        self._give_up_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left: stop the timer."""
        super().connection_lost(exc)
        self._go_on()

    def _give_up_later(self) -> None:
        self._go_on()
        self._timer = self.loop.call_later(self.settings.client_timeout, self.transport.abort)

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
