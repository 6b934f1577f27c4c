"""The command `serve`: a socket, and uvicorn on it until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from types import FrameType

import uvicorn

from runtime.model.model import Model
from runtime.server.engine.engine import Engine
from runtime.server.transport.app import make_app
from runtime.server.transport.connection import Connection
from runtime.server.transport.tls import tls_options
from runtime.server_settings import Settings

MAX_HEAD_BYTES = 16384
_LEFT_SECONDS = 5.0  # for the last words to clients, after the grace


def serve(model: Model, settings: Settings, *, verbose: bool = False) -> None:
    """Serve a model until SIGINT or SIGTERM. Raises OSError where the address cannot be listened on.

    Raises OSError or ValueError for TLS files that cannot be used.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING)
    server = make_server(model, settings, verbose=verbose)
    with listen(settings) as listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        scheme = "http" if settings.tls_cert is None else "https"
        server.greeting = (
            f"gpt2-edge: {settings.alias or model.folder.name} at {scheme}://{shown}:{port} (Ctrl-C stops)"
        )
        server.run(sockets=[listening])


def listen(settings: Settings) -> socket.socket:
    """The socket. Raises OSError naming the address."""
    host, port = settings.host, settings.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=settings.connections)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error}; --port 0 takes a free port") from None


def make_server(model: Model, settings: Settings, *, verbose: bool = False) -> Server:
    """uvicorn, with our limits. Raises OSError or ValueError for TLS files that cannot be used."""
    config = uvicorn.Config(
        make_app(model, settings),
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
    """When it is told to stop, requests under way have some time to finish, and then end where they are."""

    greeting: str | None = None  # a line for stderr, once requests are answered and signals are heard

    def __init__(self, config: uvicorn.Config, grace: float) -> None:
        super().__init__(config)
        self._grace, self._n_signals = grace, 0

    @property
    def _engine(self) -> Engine:
        engine: Engine = self.config.app.state.engine  # type: ignore[union-attr]  # it is the FastAPI object
        return engine

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        if self.greeting:
            _say(self.greeting)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets requests finish, the second ends them where they are, the third drops them."""
        self._n_signals += 1
        if self._n_signals == 2:
            asyncio.get_running_loop().call_soon_threadsafe(self._engine.stop_all)
            return
        self.force_exit = self._n_signals > 2
        super().handle_exit(sig, frame)
        if self._n_signals == 1 and self._engine.n_open:
            about = f"requests under way have {self._grace:g} s to finish; a second signal ends them now"
            # in the loop: the handler may interrupt a write to the same stream
            asyncio.get_running_loop().call_soon_threadsafe(_say, f"gpt2-edge: {about}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        stopping = asyncio.get_running_loop().call_later(self._grace, self._engine.stop_all)
        await super().shutdown(sockets)
        stopping.cancel()


def _say(text: str) -> None:
    """A line on standard error, where there is still one."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)
