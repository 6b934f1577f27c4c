"""A server under test, in a thread of its own, as a fixture too, and what speaks to it without a client library."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: pip install 'gpt2-edge[server]'")

from runtime.model.model import Model
from runtime.server.engine.engine import Engine
from runtime.server.transport.listener import Server, listen, make_server
from runtime.server_settings import Settings


class Running(NamedTuple):
    """A server that listens on 127.0.0.1."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine(self) -> Engine:
        """What the requests to the first model share."""
        return self.server.engines.default

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            reply = connection.getresponse()
            return Reply(reply.status, reply.read(), {k.lower(): v for k, v in reply.headers.items()})

    def post(self, path: str = "/v1/completions", **fields: Any) -> Reply:
        """A request in JSON."""
        return self.request("POST", path, json.dumps(fields).encode(), Content_Type="application/json")


class Reply(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's shape, which has to be there."""
        (name, error), *others = self.json.items()
        assert name == "error"
        assert not others
        assert error.keys() == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        return dict(error)


@contextlib.contextmanager
def running(model: Model, *others: Model, send_buffer: int | None = None, **settings: Any) -> Iterator[Running]:
    """A server of one model or several on a free port; it is gone afterwards, with its threads.

    send_buffer: bytes that the system takes for a client that does not read.
    """
    n_threads = threading.active_count()
    given = Settings(**{"port": 0, "grace": 0.5, **settings})
    server = make_server([model, *others], given)
    listening = listen(given)
    if send_buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield Running(server, port)
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
    assert not thread.is_alive()
    wait_until(lambda: threading.active_count() <= n_threads)


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    """Return once a condition holds; fail after some time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8) as one:
        yield one
