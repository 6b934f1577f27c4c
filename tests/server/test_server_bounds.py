"""Requests that are large, many or long: bounded, and others are served."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from typing import Any

import pytest

from runtime.model.model import Model
from tests.support.connecting import LONG, PROMPT, connect, head, read_all, whole
from tests.support.connecting import nothing_is_left as nothing_is_left
from tests.support.connecting import server as server
from tests.support.serving import Running, running, wait_until

# large ---------------------------------------------------------------------------------------------------------------


def test_a_large_body_is_413(server: Running) -> None:
    reply = server.post(prompt="a" * 20_000)
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")


def test_a_body_without_end_is_413(server: Running) -> None:
    with connect(server) as client:
        client.sendall(head(Transfer_Encoding="chunked"))
        sent, chunk = 0, b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
        with contextlib.suppress(OSError):
            while sent < 2**28:
                client.sendall(chunk)
                sent += len(chunk)
        assert sent < 2**26


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: " + b"a" * 100_000,
        b"GET /" + b"a" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"GET /health HTTP/9.9\r\n\r\n",
        b"\r\n" * 50_000,
        head(Content_Length="-5"),
        head(Content_Length="5, 6"),
        head(Content_Length=5, Transfer_Encoding="chunked") + b"0\r\n\r\n",
        head(Transfer_Encoding="chunked") + b"zz\r\n",
    ],
    ids=lambda sent: ascii(sent[:40]),
)
def test_what_is_no_http_is_refused(server: Running, sent: bytes) -> None:
    with connect(server) as client:
        with contextlib.suppress(OSError):
            client.sendall(sent)
        with contextlib.suppress(OSError):
            reply = read_all(client)
            assert reply == b"" or reply.split()[1] in (b"400", b"403", b"408")


# many ----------------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_429(demo_int8: Model) -> None:
    with running(demo_int8, rows=1, queue=2) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(server)).sendall(whole(**LONG))
        wait_until(lambda: server.engine.n_open == 3)
        reply = server.post(prompt=PROMPT)
        assert (reply.status, reply.error["type"]) == (429, "rate_limit_error")
        assert int(reply.headers["retry-after"]) >= 1
        stack.close()
        wait_until(lambda: server.engine.n_open == 0)
        assert server.post(prompt=PROMPT).status == 200


def test_hundreds_of_connections_leave_room_for_others(server: Running) -> None:
    """Of those whose request is not whole, the oldest make room."""
    early = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    early.request("GET", "/health")
    assert early.getresponse().read()
    n_threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(300)]
        for client in clients[1::2]:
            with contextlib.suppress(OSError):
                client.sendall(head(Content_Length=1000))
        early.request("GET", "/health")
        assert early.getresponse().read() == b'{"status":"ok"}'
        assert server.request("GET", "/health").status == 200
        assert read_all(clients[0]) == b""
        wait_until(lambda: len(server.server.server_state.connections) <= 20)
        assert threading.active_count() == n_threads
    early.close()


def test_where_all_have_asked_the_next_is_503(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(server)).sendall(whole(**LONG))
        wait_until(lambda: server.engine.n_open == 20)
        reply = server.request("GET", "/health")
        assert (reply.status, reply.error["code"]) == (503, "server_busy")


def test_many_requests_on_one_connection(server: Running) -> None:
    """Pipelined: answered in order, never side by side."""
    with connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200)
        data = b""
        while data.count(b'{"status":"ok"}') < 200:
            data += client.recv(65536)


def test_threads_are_as_many_for_one_request_as_for_twenty(demo_int8: Model) -> None:
    with running(demo_int8, rows=2) as server:
        server.post(prompt=[PROMPT] * 8, max_tokens=2, echo=True, logprobs=0)
        n_threads = threading.active_count()
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(connect(server)).sendall(whole(**LONG, echo=True, logprobs=0))
            wait_until(lambda: server.engine.n_open == 20)
            assert threading.active_count() <= n_threads + 1  # the second of two that prepare


# time ----------------------------------------------------------------------------------------------------------------


def test_a_request_has_so_long(demo_int8: Model) -> None:
    with running(demo_int8, timeout=0.3) as server:
        start = time.monotonic()
        (choice,) = server.post(**LONG, overflow="slide").json["choices"]
        assert time.monotonic() - start < 5
        if choice["gpt2_edge"]["finish_reason"] == "length":
            pytest.skip("this machine wrote all of it in time")
        assert choice["gpt2_edge"]["finish_reason"] == "deadline"
        assert choice["finish_reason"] == "length"
        assert 0 < len(choice["gpt2_edge"]["ids"]) < 500


@pytest.mark.parametrize("asked", [{"task": "choose", "options": ["red", "blue"]}, {"echo": True, "logprobs": 1}])
@pytest.mark.parametrize("stream", [False, True])
def test_what_writes_nothing_has_so_long_too(demo_int8: Model, asked: dict[str, Any], stream: bool) -> None:
    free = threading.Event()
    with running(demo_int8, timeout=0.3) as server:
        server.engine._aside.submit(free.wait)  # another's pass
        try:
            reply = server.post(prompt="The ring was", **asked, stream=stream)
        finally:
            free.set()
        assert b"within this server's limit of 0.3 s" in reply.body
        assert (reply.status, stream) in ((503, False), (200, True))


def test_a_client_may_ask_for_less(server: Running) -> None:
    (choice,) = server.post(**LONG, deadline=0.001).json["choices"]
    assert choice["gpt2_edge"]["finish_reason"] == "deadline"
