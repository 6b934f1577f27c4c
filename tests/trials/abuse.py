"""Clients as no server wants them. Each takes a port of 127.0.0.1 and how often, and counts what became of it."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Outcomes = Counter[str]
PROMPT = "Once upon a time"
LONG: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 400, "min_new_tokens": 400}
AT_A_TIME = 64  # clients that do something; many more only hold a connection
PATIENCE = 60.0  # seconds after which a connection that is still there was held
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
STAGES = ("head", "body", "queue", "prefill", "stream", "end")
WRONG: list[Any] = [
    None, True, 0, -1, 3, 1.5, 2**31, 10**30, 1e308, float("nan"), float("-inf"), "", "x", "\0", "\ud800", "9" * 50_000,
    [], [None], [[]], [0], [0.5], ["x"], ["x", 1], [[0]], [["x"]], [0] * 20_000, ["x"] * 20_000, [[0]] * 500,
    {}, {"x": {}}, {"0": 0}, {str(i): "x" for i in range(5_000)},
    functools.reduce(lambda inner, _: [inner], range(200), 0),
]  # fmt: skip
FORMS: list[dict[str, Any]] = [
    {"regex": "(?:[a-z]{3}[0-9]{2}){30}x"},
    {"regex": "(?:(?:..){7}|(?:...){5}|(?:.....){3})+"},
    {"regex": "(?:a+b+c+|[^a]{5,50}z){3,}!"},
    {"regex": "(?s).*a.{200}"},
    {"regex": "(a|b)" * 5_000},
    {"regex": "((a{1,100}){1,100}){1,100}"},
    {"choices": [f" {n}" for n in range(4_000)]},
    {"json_schema": {"$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}}}, "$ref": "#/$defs/x"}},
    {"json_schema": {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}},
    {"json_schema": {"enum": ["x" * 1_000, "y" * 1_000]}},
]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def request(**fields: Any) -> bytes:
    """A whole one."""
    body = json.dumps(fields).encode()
    return HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def each(work: Callable[[int, int], str], port: int, count: int, *, at_a_time: int = AT_A_TIME) -> Outcomes:
    """The outcomes of so many, some at a time; what the system says of a connection that is gone is one of them."""

    def attempt(index: int) -> str:
        try:
            return work(port, index)
        except TimeoutError:
            return "HELD"
        except OSError:
            return "given up"

    with ThreadPoolExecutor(at_a_time) as pool:
        return Counter(pool.map(attempt, range(count)))


def read_reply(client: socket.socket) -> str:
    """The status, or that there is none; until the server closes."""
    data = b""
    while part := client.recv(65536):
        data = (data + part)[:100]
    return data.split()[1].decode() if data else "given up"


def read_end(client: socket.socket) -> bytes:
    """The last of what comes until the server closes."""
    data = b""
    while part := client.recv(65536):
        data = (data + part)[-100:]
    return data


def drip(port: int, index: int) -> str:
    """A head, or a body, a byte at a time."""
    head, body = request(**LONG).split(b"\r\n\r\n")
    sent, dripped = (head + b"\r\n\r\n", body) if index % 2 else (b"", head)
    end = time.monotonic() + PATIENCE
    with connect(port) as client:
        client.sendall(sent)
        for byte in itertools.cycle(dripped):
            client.sendall(bytes([byte]) if byte > 32 else b"a")
            client.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                return read_reply(client)
            if time.monotonic() > end:
                return "HELD"
    raise AssertionError


def half(port: int, index: int) -> str:
    """A request cut at each of its bytes, and nothing more."""
    whole = request(**LONG)
    with connect(port) as client:
        client.sendall(whole[: index % len(whole)])
        return read_reply(client)


def endless(port: int, index: int) -> str:
    """A body in chunks without end, or of a terabyte."""
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n" if index % 2 else b"a" * 0x10000
    how = b"Transfer-Encoding: chunked" if index % 2 else b"Content-Length: 1000000000000"
    end = time.monotonic() + PATIENCE
    with connect(port) as client:
        client.sendall(HEAD + how + b"\r\n\r\n")
        try:
            while time.monotonic() < end:
                client.sendall(chunk)
        except ConnectionError:
            return "given up"
    return "HELD"


def unread(port: int, _index: int) -> str:
    """A long reply that is never read."""
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(request(**LONG, stream=True, logprobs=20))
        time.sleep(3)
    return "left"


def leave(port: int, index: int) -> str:
    """A client that goes at some stage of its request, by the book or by a reset."""
    stage, rng = STAGES[index % len(STAGES)], random.Random(index)
    asked = {"prefill": {"prompt": "the old king " * 150, "max_tokens": 10}, "end": {"prompt": PROMPT, "max_tokens": 5}}
    whole = request(**asked.get(stage, LONG), stream=stage in ("stream", "end"))
    n_head = whole.index(b"\r\n\r\n")
    cut = {"head": rng.randrange(1, n_head), "body": rng.randrange(n_head + 4, len(whole))}.get(stage, len(whole))
    with connect(port) as client:
        client.sendall(whole[:cut])
        if stage in ("stream", "end"):
            data, n_events = b"", 5 if stage == "end" else rng.randrange(1, 8)
            while data.count(b"data: ") < n_events and (part := client.recv(4096)):
                data += part
        else:
            time.sleep(rng.uniform(0, 0.05))
        if index % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "left"


def hold(port: int, count: int) -> Outcomes:
    """So many connections at the same time, half of them with half a request, for two seconds."""
    with contextlib.ExitStack() as stack:
        clients = []
        for index in range(count):
            with contextlib.suppress(OSError):
                clients.append(stack.enter_context(connect(port)))
                clients[-1].sendall(HEAD[: 30 * (index % 2)])
        time.sleep(2)
    return Counter({"opened": len(clients), "not opened": count - len(clients)})


def mistype(port: int, count: int) -> Outcomes:
    """Every field of the API's description, alone and with another one, with a value that is seldom right."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/openapi.json")
        schemas = json.loads(connection.getresponse().read())["components"]["schemas"]
        names = {"completions": "CompletionRequest", "chat/completions": "ChatRequest"}
        every = [(to, field, value) for to in names for field in schemas[names[to]]["properties"] for value in WRONG]
        outcomes = Outcomes()
        for index in range(count):
            to, field, value = every[index % len(every)]
            body = {"prompt": PROMPT, "max_tokens": 2, field: value}
            if index >= len(every):
                _, other, value = every[index * 7919 % len(every)]
                body[other] = value
            connection.request("POST", f"/v1/{to}", json.dumps(body), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            reply.read()
            outcomes[str(reply.status)] += 1
    return outcomes


def form(port: int, index: int) -> str:
    """A form that is hard to keep."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        body = {"prompt": PROMPT, "max_tokens": 150, "seed": index, **FORMS[index % len(FORMS)]}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        return str(connection.getresponse().status)
