"""One client that means it ill: what a request can make grow is bounded when it is admitted, and others are served."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import runtime
from runtime.generation.batch import Batch
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from runtime.server import errors, json_route
from runtime.server.engine import form_time
from runtime.server.engine.cancellable_model import CancellableModel
from tests.support.serving import Running, running, wait_until

PROMPT = "Once upon a time"
LONG: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 4000, "min_new_tokens": 4000, "overflow": "slide"}
NODES = {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 3}
FIELDS = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"]}
TEXT = {"type": "string", "minLength": 300}
# a text of it is hard to find: the search takes a minute
HARD = {"json_schema": {"$defs": {"n": {"anyOf": [NODES, FIELDS, TEXT]}}, "$ref": "#/$defs/n"}, "max_tokens": 900}


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8) as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_is_left(server: Running) -> Iterator[None]:
    yield
    wait_until(lambda: server.engine.n_open == 0 and server.engine.n_running == 0)
    assert server.request("GET", "/health").status == 200


# what grows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overflow", ["error", "stop", "truncate_left", "slide"])
def test_token_ids_are_as_many_as_a_text_may_have_characters(server: Running, overflow: str) -> None:
    n = server.engine.max_characters
    for prompt in ([5] * (n + 1), [[5], [5] * (n + 1)]):
        reply = server.post(prompt=prompt, overflow=overflow, max_tokens=2)
        assert reply.error["code"] == "context_length_exceeded"
    if overflow in ("truncate_left", "slide"):
        for options in ({"no_repeat_ngram_size": 300}, {"repetition_penalty": 1.2, "token_healing": True}):
            asked = {"prompt": [5, 6] * (n // 2), "overflow": overflow, "max_tokens": 20, "n": 8, **options}
            assert server.post(**asked).status == 200


@pytest.mark.parametrize("field", ["suppress_ids", "stop_ids"])
def test_lists_of_ids_are_as_long_as_the_vocabulary(server: Running, field: str) -> None:
    n = server.engine.model.config.vocab_size
    assert server.post(prompt=PROMPT, max_tokens=2, **{field: [1] * n}).status == 200
    assert server.post(prompt=PROMPT, max_tokens=2, **{field: [1] * (n + 1)}).error["param"] == field


@pytest.mark.parametrize("field", ["stop", "banned", "dry_sequence_breakers"])
def test_lists_of_texts_are_short(server: Running, field: str) -> None:
    options = {"dry_multiplier": 0.8} if field.startswith("dry") else {}
    assert server.post(prompt=PROMPT, max_tokens=2, **options, **{field: ["zq"] * 16}).status == 200
    for wrong in (["zq"] * 17, ["z" * 257], "z" * 257):
        assert server.post(prompt=PROMPT, max_tokens=2, **options, **{field: wrong}).status == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 72, "max_tokens": 4096, "logprobs": 20, "overflow": "slide"},
        {"n": 72, "max_tokens": 400, "logprobs": 20},
        {"prompt": [[400] * 8000] * 8, "n": 9, "echo": True, "logprobs": 20, "overflow": "truncate_left"},
    ],
    ids=["new tokens", "a little less", "echo"],
)
def test_a_reply_is_of_a_size(server: Running, fields: dict[str, Any]) -> None:
    start = time.monotonic()
    reply = server.post(**{"prompt": PROMPT, "temperature": 1, **fields})
    assert reply.error["code"] in ("reply_too_large", "context_length_exceeded")
    assert time.monotonic() - start < 5


def test_replies_together_are_of_a_size(demo_int8: Model) -> None:
    n_bytes = 64 * 22 * 4000
    with running(demo_int8, max_reply_bytes=int(2.1 * n_bytes)) as server, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(lambda: server.post(**LONG, n=2, logprobs=20)) for _ in range(4)]
        wait_until(lambda: sum(job.n_bytes for job in server.engine._jobs) >= 8 * n_bytes)
        reply = server.post(**LONG, n=2, logprobs=20)
        assert (reply.status, reply.error["code"]) == (429, "server_busy")
        assert server.post(prompt=PROMPT, max_tokens=2).status == 200
        server.engine.stop_all()
        assert {one.result().status for one in asked} <= {429, 503}


def test_a_large_value_is_not_written_out_to_be_shown() -> None:
    assert len(errors.short("a" * 10**6)) < 100
    assert len(errors.short([["a" * 10**6] * 10**5] * 10**5)) < 100
    assert errors.short({"a": 1}) == "{'a': 1}"


def test_large_requests_are_read_in_turns(server: Running) -> None:
    """Whose reading is under way keeps other large ones waiting, and nobody else."""
    large = {"prompt": [1.5] * json_route.LARGE}
    acquired, free = threading.Event(), threading.Event()
    loop = server.engine._scheduler._loop
    assert loop

    async def hold() -> None:
        async with server.server.engines.reading:
            acquired.set()
            while not free.is_set():
                import asyncio

                await asyncio.sleep(0.01)

    tasks: list[Any] = []
    loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(hold())))
    assert acquired.wait(10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: server.post(**large))
        try:
            assert server.post(prompt=PROMPT, max_tokens=2).status == 200
            assert not waiting.done()
        finally:
            free.set()
        assert waiting.result().status == 400


# work that nobody waits for ------------------------------------------------------------------------------------------


def leave(server: Running, **fields: Any) -> None:
    """Ask, and close the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
    wait_until(lambda: server.engine.n_open > 0)
    time.sleep(0.2)
    connection.close()


def test_the_search_for_a_form_ends_when_its_client_leaves(server: Running) -> None:
    pytest.importorskip("llguidance")
    assert server.post(prompt=PROMPT, choices=[" a", " b"]).status == 200
    prompts = ["a " * (n + 1) for n in range(34)]
    leave(server, prompt=prompts, overflow="stop", **HARD)
    start = time.monotonic()
    wait_until(lambda: server.engine.n_open == 0)
    assert time.monotonic() - start < 5
    assert server.post(prompt=PROMPT, choices=[" a", " b"]).status == 200


@pytest.mark.parametrize(
    "asked",
    [
        {"task": "choose", "prompt": "The sky is _.", "options": ["blue", "loud", "far", "red"]},
        {"task": "last_word", "prompt": "a " * 400},
        {"prompt": "a " * 400, "echo": True, "logprobs": 1, "max_tokens": 0},
    ],
    ids=["choose", "last_word", "echo"],
)
def test_passes_outside_of_the_batch_end_when_their_client_leaves(
    server: Running, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """In the middle: the pass that runs is the last one."""
    left = threading.Event()
    passes: list[int] = []

    def make_waiting(method: Any) -> Any:
        def wait_and_pass(*given: Any, **named: Any) -> Any:
            passes.append(1)
            left.wait(30)
            return method(*given, **named)

        return wait_and_pass

    # Options of a choice begin together, in one pass over all of them.
    for name in ("extend", "begin_rows"):
        monkeypatch.setattr(InPlaceCache, name, make_waiting(getattr(InPlaceCache, name)))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
    wait_until(lambda: passes)
    connection.close()
    [job] = server.engine._jobs
    wait_until(job.is_cancelled)
    left.set()
    wait_until(lambda: server.engine.n_open == 0)
    assert len(passes) == 1


def test_what_a_cancellable_model_computes_is_the_models_own(demo_int8: Model) -> None:
    asked: dict[str, Any] = {"context": "The sky is", "model": CancellableModel(demo_int8, lambda: None)}
    found = runtime.score([" blue", " loud and far"], **asked)
    assert found == runtime.score([" blue", " loud and far"], context="The sky is", model=demo_int8)


def test_work_counts_until_it_has_ended(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its client has left: a flood of them meets the queue's limit."""
    free = threading.Event()

    def wait_for_it(*_: object, **__: object) -> tuple[list[int], list[tuple[int, int]]]:
        free.wait(30)
        return [1], [(0, 1)]

    monkeypatch.setattr("runtime.server.openai.plan.encode_prompt_with_spans", wait_for_it)
    leave(server, prompt=PROMPT)
    time.sleep(0.2)
    assert server.engine.n_open == 1
    free.set()
    wait_until(lambda: server.engine.n_open == 0)


def test_the_search_for_a_form_takes_so_long(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    monkeypatch.setattr(form_time, "SEARCH_SECONDS", 0.2)
    start = time.monotonic()
    reply = server.post(prompt=["a " * (n + 1) for n in range(34)], overflow="stop", **HARD)
    assert (reply.status, reply.error["code"]) == (400, "form_too_hard")
    assert time.monotonic() - start < 10


def test_the_steps_of_a_form_take_so_long(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error, and no other text."""
    pytest.importorskip("llguidance")
    monkeypatch.setattr(form_time, "BURST_SECONDS", 0.0)
    monkeypatch.setattr(form_time, "STEP_SECONDS", 0.0)
    reply = server.post(prompt=PROMPT, regex="[a-z ]{50,100}", max_tokens=100)
    assert (reply.status, reply.error["code"]) == (400, "form_too_hard")


def test_the_time_of_a_request_begins_at_its_arrival(demo_int8: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> tuple[list[int], list[tuple[int, int]]]:
        time.sleep(0.6)
        return [5, 6, 7], [(0, 1), (1, 2), (2, 3)]

    monkeypatch.setattr("runtime.server.openai.plan.encode_prompt_with_spans", slow)
    with running(demo_int8) as server:
        (choice,) = server.post(prompt=PROMPT, max_tokens=5, deadline=0.5).json["choices"]
        assert choice["gpt2_edge"]["finish_reason"] == "deadline"
        assert choice["text"] == ""


def test_a_plain_request_does_not_wait_for_forms(server: Running) -> None:
    pytest.importorskip("llguidance")
    with ThreadPoolExecutor(3) as pool:
        prompts = ["a " * (n + 1) for n in range(17)]
        hard = [pool.submit(lambda: server.post(prompt=prompts, overflow="stop", deadline=3, **HARD)) for _ in range(3)]
        wait_until(lambda: server.engine.n_open == 51)
        start = time.monotonic()
        assert server.post(prompt=PROMPT, max_tokens=4).status == 200
        assert time.monotonic() - start < 3
        for one in hard:
            one.result()


@pytest.mark.parametrize("asked", [{"deadline": 0.3}, {"cancel": None}], ids=["deadline", "cancel"])
def test_the_library_ends_a_search_too(demo_int8: Model, asked: dict[str, Any]) -> None:
    pytest.importorskip("llguidance")
    start = time.monotonic()
    if "cancel" in asked:
        asked = {"cancel": lambda: time.monotonic() - start > 0.3}
    schema = HARD["json_schema"]
    (one,) = runtime.complete("a a a", model=demo_int8, json_schema=schema, max_new_tokens=400, **asked)
    assert (one.text, one.finish_reason) == ("", "deadline" if "deadline" in asked else "cancelled")
    assert time.monotonic() - start < 5


# shares --------------------------------------------------------------------------------------------------------------


def test_a_request_of_many_rows_leaves_slots_to_others(server: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        many = pool.submit(lambda: server.post(**{**LONG, "n": 30, "deadline": 4.0}))
        wait_until(lambda: server.engine.n_running == server.engine.n_rows)
        start = time.monotonic()
        assert server.post(prompt=PROMPT, max_tokens=4).status == 200
        assert time.monotonic() - start < 3
        reasons = {choice["gpt2_edge"]["finish_reason"] for choice in many.result().json["choices"]}
        assert reasons == {"deadline"}


def test_requests_of_one_row_take_turns(demo_int8: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets the ids that it gets alone."""
    monkeypatch.setattr("runtime.server.engine.scheduler.SLICE_SECONDS", 0.02)
    parked: list[int] = []
    park = Batch.park
    monkeypatch.setattr(Batch, "park", lambda batch, row: (parked.append(1), park(batch, row))[1])
    fields = {"max_tokens": 120, "min_new_tokens": 120, "temperature": 1.0, "seed": 5, "logprobs": 2}
    prompts = [PROMPT, "The king", "One day a mouse", "In the wood"]
    with running(demo_int8, rows=2) as server, ThreadPoolExecutor(4) as pool:
        alone = [server.post(prompt=prompt, **fields).json["choices"][0]["logprobs"] for prompt in prompts]
        assert not parked
        together = [pool.submit(server.post, prompt=prompt, **fields) for prompt in prompts]
        assert [one.result().json["choices"][0]["logprobs"] for one in together] == alone
    assert parked


def test_no_room_to_park_is_no_error(demo_int8: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise MemoryError("full")

    monkeypatch.setattr("runtime.server.engine.scheduler.SLICE_SECONDS", 0.01)
    monkeypatch.setattr(Batch, "park", full)
    with running(demo_int8, rows=1) as server, ThreadPoolExecutor(3) as pool:
        replies = [pool.submit(server.post, prompt=PROMPT, max_tokens=60) for _ in range(3)]
        assert [one.result().status for one in replies] == [200] * 3
