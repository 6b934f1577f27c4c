"""A server of narrow bounds on 127.0.0.1, as a fixture, and clients of it that write and read bytes."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.model.model import Model
from tests.support.serving import Running, running, wait_until

PROMPT = "Once upon a time"
LONG = {"prompt": PROMPT, "max_tokens": 500, "logit_bias": {"0": -100}, "min_new_tokens": 500}
PATIENCE = 1.0  # client_timeout


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8, client_timeout=PATIENCE, connections=20, max_body_bytes=20_000, rows=2) as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_is_left(server: Running) -> Iterator[None]:
    """After each test where this is imported the server answers, and no work or connection is left."""
    yield
    wait_until(lambda: server.engine.n_open == 0 and server.engine.n_running == 0, 10)
    wait_until(lambda: not server.server.server_state.connections, 10)
    assert server.post(prompt=PROMPT, max_tokens=2).status == 200


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def head(path: str = "/v1/completions", **headers: Any) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    return "\r\n".join(
        [*lines, *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()), "", ""]
    ).encode()


def whole(**fields: Any) -> bytes:
    body = json.dumps(fields).encode()
    return head(Content_Length=len(body)) + body


def read_all(client: socket.socket) -> bytes:
    """Until the server closes; "" also where it resets."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            data += part
    return data
