"""Clients that are slow or gone: given up, and others are served."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

import pytest

from runtime.model.model import Model
from tests.support.connecting import LONG, PATIENCE, PROMPT, connect, head, read_all, whole
from tests.support.connecting import nothing_is_left as nothing_is_left
from tests.support.connecting import server as server
from tests.support.serving import Running, running, wait_until

# slow ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A"])
def test_half_a_request_is_given_up(server: Running, sent: bytes) -> None:
    with connect(server) as client:
        client.sendall(sent)
        start = time.monotonic()
        assert read_all(client) == b""
        assert time.monotonic() - start < 5 * PATIENCE


def drip(client: socket.socket, byte: bytes) -> float:
    """Send a byte again and again until the server gives up, or for long; the seconds."""
    start = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - start < 10 * PATIENCE:
            client.sendall(byte)
            time.sleep(0.05)
    return time.monotonic() - start


def test_a_head_that_drips_is_given_up(server: Running) -> None:
    with connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
        assert drip(client, b"a") < 5 * PATIENCE


def test_a_second_request_that_drips_is_given_up_too(server: Running) -> None:
    with connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200" in client.recv(65536)
        assert drip(client, b"G") < 5 * PATIENCE


@pytest.mark.parametrize("headers", [{"Content_Length": 1000}, {"Transfer_Encoding": "chunked"}])
def test_a_body_that_does_not_come_is_408(server: Running, headers: dict[str, Any]) -> None:
    with connect(server) as client:
        client.sendall(head(**headers))
        reply = read_all(client)
    assert reply.startswith(b"HTTP/1.1 408")
    assert b'"code": "request_timeout"' in reply


# gone ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["head", "body", "waiting", "decoding", "stream", "reset"])
def test_a_client_that_leaves_is_forgotten(server: Running, stage: str) -> None:
    request = whole(**LONG, stream=stage in ("stream", "reset"))
    with contextlib.ExitStack() as stack:
        if stage == "waiting":  # behind two that decode
            for _ in range(2):
                stack.enter_context(connect(server)).sendall(request)
            wait_until(lambda: server.engine.n_running == 2)
        client = connect(server)
        client.sendall({"head": request[:20], "body": request[:-5]}.get(stage, request))
        if stage not in ("head", "body"):
            wait_until(lambda: server.engine.n_open == (3 if stage == "waiting" else 1))
        if stage in ("stream", "reset"):
            client.recv(1000)
        if stage == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        if stage == "waiting":
            wait_until(lambda: server.engine.n_open == 2, 5)


def test_a_reader_that_stops_is_given_up(demo_int8: Model) -> None:
    with running(demo_int8, send_buffer=4096, client_timeout=PATIENCE) as server:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with client:
            client.connect(("127.0.0.1", server.port))
            client.sendall(whole(**LONG, stream=True, logprobs=20, n=4))
            wait_until(lambda: server.engine.n_open == 4)
            wait_until(lambda: server.engine.n_open == 0 and not server.server.server_state.connections, 30)
        assert server.post(prompt=PROMPT, max_tokens=2).status == 200
