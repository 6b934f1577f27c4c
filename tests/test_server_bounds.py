"""Clients that are many, slow, gone or hostile: bounded, and others are served. All on 127.0.0.1."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.model import Model
from tests.serving import Running, running, wait_until

PROMPT = "Once upon a time"
LONG = {"prompt": PROMPT, "max_tokens": 500, "logit_bias": {"0": -100}, "min_new_tokens": 500}
PATIENCE = 1.0  # client_timeout


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8, client_timeout=PATIENCE, connections=20, max_body_bytes=20_000, rows=2) as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_is_left(server: Running) -> Iterator[None]:
    """After each test the server answers, and no work or connection is left."""
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


# slow ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A"])
def test_half_a_request_is_given_up(server: Running, sent: bytes) -> None:
    with connect(server) as client:
        client.sendall(sent)
        start = time.monotonic()
        assert read_all(client) == b""
        assert time.monotonic() - start < 5 * PATIENCE


def test_a_head_that_drips_is_given_up(server: Running) -> None:
    with connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 10 * PATIENCE:
                client.sendall(b"a")
                time.sleep(0.05)
        assert time.monotonic() - start < 5 * PATIENCE


def test_a_second_request_that_drips_is_given_up_too(server: Running) -> None:
    with connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200" in client.recv(65536)
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 10 * PATIENCE:
                client.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - start < 5 * PATIENCE


@pytest.mark.parametrize("headers", [{"Content_Length": 1000}, {"Transfer_Encoding": "chunked"}])
def test_a_body_that_does_not_come_is_408(server: Running, headers: dict[str, Any]) -> None:
    with connect(server) as client:
        client.sendall(head(**headers))
        reply = read_all(client)
    assert reply.startswith(b"HTTP/1.1 408")
    assert b'"code": "request_timeout"' in reply


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


# who may ask ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_a_name_that_points_here_is_not_enough(server: Running, host: str) -> None:
    """A web page can have its own name resolve to 127.0.0.1, and would then read what it asked."""
    reply = server.request("GET", "/v1/models", Host=host)
    assert (reply.status, reply.error["code"]) == (403, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:80", "192.168.0.7"])
def test_an_address_is(server: Running, host: str) -> None:
    assert server.request("GET", "/v1/models", Host=host).status == 200


def test_with_a_key_only_those_who_have_it(demo_int8: Model) -> None:
    with running(demo_int8, api_key="swordfish") as server:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing"):
            for given in (
                {},
                {"Authorization": "Bearer sword"},
                {"Authorization": "swordfish"},
                {"Authorization": "é"},
            ):
                reply = server.request("GET", path, **given)
                assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
                assert reply.headers["www-authenticate"] == "Bearer"
        key = {"Authorization": "Bearer swordfish"}
        assert server.request("GET", "/v1/models", **key).status == 200
        assert server.request("GET", "/v1/models", Host="my.example", **key).status == 200
        assert server.request("GET", "/health").status == 200
        assert server.request("GET", "/").status == 200


def test_the_page_may_load_nothing_from_elsewhere(server: Running) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/sheet.js", "text/javascript"),
    ):
        reply = server.request("GET", path)
        assert reply.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert b"http" not in reply.body.replace(b"http://www.w3.org/2000/svg", b"")
    assert "access-control-allow-origin" not in server.request("GET", "/v1/models", Origin="http://a.example").headers
