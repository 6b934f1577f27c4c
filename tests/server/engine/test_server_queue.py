"""A stream whose request waits says its place in the queue, in comments that stock clients skip."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from runtime.model.model import Model
from runtime.server.openai import events
from tests.support.serving import Running, running, wait_until

PROMPT = "Once upon a time"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places are told after a shorter wait."""
    monkeypatch.setattr(events, "POSITION_SECONDS", 0.02)


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8, rows=1) as one:
        yield one


class Busy:
    """A request that holds the only row until the block is left."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def __enter__(self) -> None:
        fields = {"prompt": PROMPT, "max_tokens": 4000, "min_new_tokens": 4000, "overflow": "slide", "stream": True}
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/completions", json.dumps(fields), headers)
        wait_until(lambda: self._server.engine.n_running == 1)

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row keeps its slot until it ends."""
    from runtime.server.engine import scheduler

    monkeypatch.setattr(scheduler, "SLICE_SECONDS", 600.0)
    monkeypatch.setattr(scheduler, "MAX_PARKED", 0)


def stream(server: Running) -> str:
    return server.post(prompt=PROMPT, max_tokens=3, stream=True).body.decode()


def test_a_request_that_waits_knows_its_place(server: Running, slices: None) -> None:
    with ThreadPoolExecutor(2) as pool:
        with Busy(server):
            first = pool.submit(stream, server)
            wait_until(lambda: server.engine.n_open == 2)
            second = pool.submit(stream, server)
            wait_until(lambda: server.engine.n_open == 3)
            # Long enough for both to be told.
            threading.Event().wait(0.5)
        bodies = [first.result(60), second.result(60)]
    assert bodies[0].startswith(": queued 1\n\ndata: {")
    assert bodies[1].startswith(": queued 2\n\n")
    for body in bodies:
        assert body.endswith("data: [DONE]\n\n")
        assert "queued" not in body[body.index("data: ") :]


def test_a_request_that_does_not_wait_is_told_nothing(server: Running) -> None:
    assert "queued" not in stream(server)


def test_openais_client_skips_it(server: Running, slices: None) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    fields: dict[str, Any] = {"model": server.engine.model_id, "prompt": PROMPT, "max_tokens": 5, "temperature": 0}

    def text() -> str:
        return "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **fields))

    with ThreadPoolExecutor(1) as pool:
        with Busy(server):
            waiting = pool.submit(text)
            wait_until(lambda: server.engine.n_open == 2)
            threading.Event().wait(0.3)
        assert waiting.result(60) == client.completions.create(**fields).choices[0].text


def test_a_client_that_leaves_the_queue_leaves_it(server: Running, slices: None) -> None:
    with Busy(server):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        fields = json.dumps({"prompt": PROMPT, "stream": True})
        connection.request("POST", "/v1/completions", fields, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        assert reply.readline() == b": queued 1\n"
        reply.close()
        connection.close()
        wait_until(lambda: server.engine.n_open == 1)
    wait_until(lambda: server.engine.n_open == 0)


def test_texts_to_measure_wait_in_a_queue_of_their_own(server: Running) -> None:
    def measure() -> str:
        return server.post("/surprisal", input="The old king slept.", stream=True).body.decode()

    free = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        try:
            server.engine._aside.submit(free.wait)
            first = pool.submit(measure)
            wait_until(lambda: len(server.engine._asides) == 1)
            second = pool.submit(measure)
            wait_until(lambda: len(server.engine._asides) == 2)
            threading.Event().wait(0.3)
        finally:
            free.set()
        assert ": queued" not in first.result(60)
        assert second.result(60).startswith(": queued 1\n\ndata: ")


def test_a_long_text_does_not_keep_rows_from_decoding(server: Running) -> None:
    text = "Once upon a time there was a little mouse. " * 80
    with ThreadPoolExecutor(1) as pool:
        with Busy(server):
            body = server.post("/surprisal", input=text, stream=True).body
            assert server.engine.n_running == 1
        assert b'"results"' in body
        assert pool.submit(stream, server).result(60).endswith("data: [DONE]\n\n")
