"""Errors inside the server: whose request ends, whose goes on, and what is said of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime import estimate, load
from runtime.generation.batch import Batch
from runtime.generation.chooser import TokenChooser
from runtime.generation.record import Record
from runtime.generation.row import Row
from runtime.generation.streaming import TextStream
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from runtime.server.engine.scheduler import Scheduler
from tests.support.serving import Running, running, wait_until

PROMPT = "Once upon a time"
LONG: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 400, "min_new_tokens": 400, "temperature": 0}


class Panic(BaseException):
    """What a Rust panic is to Python: no Exception."""


@pytest.fixture
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8) as one:
        yield one


def fail_once(function: Callable[..., Any], error: BaseException, when: Callable[..., bool] = lambda *_: True) -> Any:
    """The function, which raises at its first call for which `when` holds."""
    left = [error]

    def failing(*given: Any, **named: Any) -> Any:
        if left and when(*given):
            raise left.pop()
        return function(*given, **named)

    return failing


def check_whole(server: Running) -> None:
    """The server decodes still, and says so."""
    assert server.post(prompt=PROMPT, max_tokens=3).status == 200
    assert server.request("GET", "/health").status == 200


ERRORS = [Panic("index out of bounds"), MemoryError(), RuntimeError("injected"), ValueError("odd"), SystemExit(3)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("part", "place"),
    [
        (TokenChooser, "choose"),
        (Record, "add"),
        (Record, "since"),
        (Record, "completion"),
        (TextStream, "push"),
        (TextStream, "flush"),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_an_error_of_a_row_ends_that_row(
    server: Running, monkeypatch: pytest.MonkeyPatch, part: type, place: str, error: BaseException
) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: server.post(**{**LONG, "max_tokens": 100, "min_new_tokens": 100}))
        wait_until(lambda: len(server.engine._scheduler._batch) == 1)
        [long] = server.engine._scheduler._batch.rows
        parts_of_long = (long._chooser, long.record, long.stream)

        def is_of_another(one: object, *_: object) -> bool:
            return one not in parts_of_long

        monkeypatch.setattr(part, place, fail_once(getattr(part, place), error, is_of_another))
        reply = server.post(prompt=PROMPT, max_tokens=5, logprobs=1)
        assert reply.status in (400, 500)
        assert other.result().status == 200
    check_whole(server)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_a_pass_ends_its_requests_and_no_others(
    server: Running, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(InPlaceCache, "step", fail_once(InPlaceCache.step, error))
    reply = server.post(prompt=PROMPT, max_tokens=5)
    assert (reply.status, reply.error["type"]) == (500, "server_error")
    assert type(error).__name__ in reply.error["message"]
    check_whole(server)


def test_an_error_of_a_prefill_ends_the_row_that_was_to_join(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: server.post(**LONG))
        wait_until(lambda: server.engine.n_running == 1)
        monkeypatch.setattr(InPlaceCache, "extend", fail_once(InPlaceCache.extend, Panic("prefill")))
        assert server.post(prompt="The king", max_tokens=5).status == 500
        alone = other.result()
    assert alone.status == 200
    assert alone.json["choices"][0]["text"] == server.post(**LONG).json["choices"][0]["text"]


def test_a_row_that_ended_in_the_step_that_failed_has_its_last_part(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over; then the pass of the others fails."""
    ended = threading.Event()
    end, step = Row.end, InPlaceCache.step

    def noticed(row: Row, reason: Any) -> str:
        if reason == "deadline":
            ended.set()
        return end(row, reason)

    monkeypatch.setattr(Row, "end", noticed)
    monkeypatch.setattr(InPlaceCache, "step", fail_once(step, RuntimeError("injected"), lambda *_: ended.is_set()))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: server.post(**LONG, overflow="slide", n=1))
        wait_until(lambda: server.engine.n_running == 1)
        late = server.post(**{**LONG, "max_tokens": 4000, "min_new_tokens": 4000}, overflow="slide", deadline=0.2)
        assert late.status == 200
        assert late.json["choices"][0]["gpt2_edge"]["finish_reason"] == "deadline"
        assert other.result().status == 500
    check_whole(server)


def test_a_failed_pass_takes_no_more_memory(demo_int8_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for a second batch."""
    limit = int(estimate(demo_int8_folder, rows=8).total * 1.02)
    with load(demo_int8_folder, max_memory=limit) as model, running(model) as server:
        monkeypatch.setattr(InPlaceCache, "step", fail_once(InPlaceCache.step, RuntimeError("injected")))
        assert server.post(prompt=PROMPT, max_tokens=5).status == 500
        check_whole(server)


def test_where_memory_is_too_short_to_say_so_it_is_tried_again(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InPlaceCache, "step", fail_once(InPlaceCache.step, RuntimeError("injected")))
    monkeypatch.setattr(Scheduler, "_fail", fail_once(Scheduler._fail, MemoryError()))
    assert server.post(prompt=PROMPT, max_tokens=5).status == 500
    check_whole(server)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_is_noticed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "advance", fail_once(Batch.advance, RuntimeError("injected")))
    monkeypatch.setattr(Scheduler, "_recover", fail_once(Scheduler._recover, Panic("and again")))
    with ThreadPoolExecutor(2) as pool:
        replies = [one.result(30) for one in [pool.submit(lambda: server.post(**LONG)) for _ in range(2)]]
    assert {reply.status for reply in replies} <= {500, 503}
    assert server.request("GET", "/health").status == 503
    reply = server.post(prompt=PROMPT)
    assert reply.status == 503
    assert "start the server again" in reply.error["message"]


def test_a_thread_that_stands_still_is_noticed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    step = InPlaceCache.step
    monkeypatch.setattr("runtime.server.engine.scheduler.STUCK_SECONDS", 0.2)
    monkeypatch.setattr("runtime.server.engine.job._LATE", 0.1)
    monkeypatch.setattr(InPlaceCache, "step", lambda cache, ids: (free.wait(30), step(cache, ids))[1])
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(lambda: server.post(prompt=PROMPT, max_tokens=3, deadline=2))
        wait_until(lambda: server.request("GET", "/health").status == 503)
        reply = stuck.result(30)
        free.set()
    assert (reply.status, reply.error["message"]) == (500, "the decoding thread does not answer")
    wait_until(lambda: server.request("GET", "/health").status == 200)


@pytest.mark.parametrize("error", ERRORS[:3], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "place", ["runtime.server.openai.plan.encode_prompt_with_spans", "runtime.server.openai.plan.ServedRow"]
)
def test_an_error_while_a_request_is_prepared(
    server: Running, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(place, fail_once(lambda *_: None, error))
        assert server.post(prompt=PROMPT, max_tokens=5).error["type"] == "server_error"
    check_whole(server)
    wait_until(lambda: server.engine.n_open == 0)


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.server.openai.delta import Choice

    monkeypatch.setattr(Choice, "read", fail_once(Choice.read, Panic("a name")))
    reply = server.post(prompt=PROMPT, max_tokens=5, stream=True)
    *_, last, done, _ = reply.body.split(b"\n\n")
    assert b"server_error" in last
    assert done == b"data: [DONE]"
    check_whole(server)
