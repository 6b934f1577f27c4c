"""Serve models: open a socket, and run uvicorn on it until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn

from runtime.model.model import Model
from runtime.server.engine.engines import Engines
from runtime.server.transport.app import make_app
from runtime.server.transport.connection import Connection
from runtime.server.transport.tls import tls_options
from runtime.server_settings import Settings

MAX_HEAD_BYTES = 16384
# After the grace period, the time to send the last events to clients.
_LEFT_SECONDS = 5.0


def serve(models: Sequence[Model], settings: Settings, *, verbose: bool = False) -> None:
    """Serve models until SIGINT or SIGTERM; requests that name none are for the first.

    Raises OSError if the server cannot listen on the address, OSError or ValueError for TLS files that cannot be used,
    ValueError for names that do not tell the models apart, NoTokenizerError for a model without a tokenizer.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING)
    server = make_server(models, settings, verbose=verbose)
    with listen(settings) as listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        scheme = "http" if settings.tls_cert is None else "https"
        names = ", ".join(server.engines.names)
        server.greeting = f"gpt2-edge: {names} at {scheme}://{shown}:{port} (Ctrl-C stops)"
        server.run(sockets=[listening])


def listen(settings: Settings) -> socket.socket:
    """Open the listening socket. Raises OSError, naming the address."""
    host = settings.host
    port = settings.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=settings.connections)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error}; --port 0 takes a free port") from None


def make_server(models: Sequence[Model], settings: Settings, *, verbose: bool = False) -> Server:
    """A uvicorn server with our limits. Raises as `serve` does, but for the address."""
    config = uvicorn.Config(
        make_app(models, settings),
        http=type("Connection", (Connection,), {"settings": settings}),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="info" if verbose else "warning",
        access_log=verbose,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(settings.grace + _LEFT_SECONDS),
        **tls_options(settings),
    )
    return Server(config, settings.grace)


class Server(uvicorn.Server):
    """A server that on a signal gives running requests some time to finish, and then ends them where they are.

    greeting: a line for standard error, printed when the server answers requests and handles signals.
    """

    greeting: str | None = None

    def __init__(self, config: uvicorn.Config, grace: float) -> None:
        super().__init__(config)
        self._grace = grace
        self._n_signals = 0

    @property
    def engines(self) -> Engines:
        """The engines of the models that are served."""
        # `app` is the FastAPI object here.
        engines: Engines = self.config.app.state.engines  # type: ignore[union-attr]
        return engines

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        if self.greeting:
            _say(self.greeting)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets requests finish, the second ends them where they are, the third drops them."""
        self._n_signals += 1
        if self._n_signals == 2:
            asyncio.get_running_loop().call_soon_threadsafe(self.engines.stop_all)
            return
        self.force_exit = self._n_signals > 2
        super().handle_exit(sig, frame)
        if self._n_signals == 1 and self.engines.n_open:
            about = f"requests under way have {self._grace:g} s to finish; a second signal ends them now"
            # Printed by the event loop, since the signal may have interrupted a write to the same stream.
            asyncio.get_running_loop().call_soon_threadsafe(_say, f"gpt2-edge: {about}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        stopping = asyncio.get_running_loop().call_later(self._grace, self.engines.stop_all)
        await super().shutdown(sockets)
        stopping.cancel()


def _say(text: str) -> None:
    """Print a line on standard error, if it is still open."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)
