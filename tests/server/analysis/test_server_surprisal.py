"""/surprisal: what `runtime.surprisal` gives, bounded, beside the rows that decode."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from runtime.server.analysis.surprisal import MAX_CHARACTERS
from runtime.server.engine.turns import WORK_SECONDS, Turns
from tests.support.serving import Running, running

TEXTS = ["The old king slept in his bed.", "¿Qué tal, señor 🙂?  Two\n\nparagraphs."]
LONG = "Once upon a time there was a little mouse who lived in a house. " * 60


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8) as one:
        yield one


def expected(text: str, **options: Any) -> dict[str, Any]:
    """What the library finds, in the reply's form."""
    found = runtime.surprisal(text, **options)
    n_scored = sum(token.surprisal is not None for token in found.tokens)
    value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(found)))
    for token, of in zip(value["tokens"], found.tokens, strict=True):
        token["top"] = [alternative._asdict() for alternative in of.top]
    return {**value, "total": found.total, "perplexity": pytest.approx(2 ** (found.total / n_scored))}


@pytest.mark.parametrize("options", [{}, {"top": 3}, {"bos": False}, {"word_correction": False, "top": 1}])
def test_it_is_the_librarys(server: Running, demo_int8: Model, options: dict[str, Any]) -> None:
    reply = server.post("/surprisal", input=TEXTS, **options)
    assert reply.status == 200
    assert reply.json == {"results": [expected(text, model=demo_int8, **options) for text in TEXTS]}
    (one,) = server.post("/surprisal", input=TEXTS[0], **options).json["results"]
    assert one == reply.json["results"][0]


def test_a_text_beyond_the_context_is_measured_in_windows(server: Running, demo_int8: Model) -> None:
    (found,) = server.post("/surprisal", input=LONG).json["results"]
    assert len(found["tokens"]) > demo_int8.config.n_positions
    assert found == expected(LONG, model=demo_int8)


def test_without_a_scored_token_there_is_no_perplexity(server: Running) -> None:
    (found,) = server.post("/surprisal", input="The", bos=False).json["results"]
    assert [token["surprisal"] for token in found["tokens"]] == [None]
    assert found["perplexity"] is None


def test_a_stream_tells_its_progress(server: Running) -> None:
    body = server.post("/surprisal", input=[LONG, TEXTS[0]], stream=True).body.decode()
    *events, done, end = body.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    *progress, reply = (json.loads(event.removeprefix("data: ")) for event in events)
    shares = [one["progress"] for one in progress]
    assert len(shares) > 10
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert reply == server.post("/surprisal", input=[LONG, TEXTS[0]]).json


@pytest.mark.parametrize(
    ("fields", "status", "param", "told"),
    [
        ({"input": ""}, 400, None, "no tokens"),
        ({"input": ["a", ""]}, 400, None, "no tokens"),
        ({"input": []}, 400, "input", "at least 1"),
        ({"input": ["a"] * 65}, 400, "input", "at most 64"),
        ({"input": 5}, 400, "input", "5"),
        ({"input": "a", "top": 21}, 400, "top", "less than or equal to 20"),
        ({"input": "a", "top": -1}, 400, "top", "greater than or equal to 0"),
        ({"input": "a", "words": ["a"]}, 400, "words", "unknown field"),
        ({"input": "a", "model": "gpt-4"}, 404, "model", "there is no model"),
        ({}, 400, "input", "missing"),
    ],
)
def test_what_is_wrong_is_said(
    server: Running, fields: dict[str, Any], status: int, param: str | None, told: str
) -> None:
    reply = server.post("/surprisal", **fields)
    assert (reply.status, reply.error["param"]) == (status, param)
    assert told in reply.error["message"]


def test_a_text_that_is_too_long_is_refused(server: Running) -> None:
    most = max(MAX_CHARACTERS, server.engine.max_characters)
    reply = server.post("/surprisal", input=["a" * most, "a"])
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert f"at most {most:,} are measured at once" in reply.error["message"]


def test_a_reply_that_would_be_too_large_is_refused(demo_int8: Model) -> None:
    with running(demo_int8, max_reply_bytes=20_000) as server:
        assert server.post("/surprisal", input=TEXTS[0], top=20).status == 200
        reply = server.post("/surprisal", input=LONG, top=20)
        assert (reply.status, reply.error["code"]) == (400, "reply_too_large")
        assert "lower top, or send less text" in reply.error["message"]


def test_measured_tokens_are_counted(demo_int8: Model) -> None:
    with running(demo_int8) as server:
        (found,) = server.post("/surprisal", input=TEXTS[0]).json["results"]
        counts = server.request("GET", "/metrics").body.decode()
    assert f'gpt2_edge_scored_tokens_total{{model="demo-int8"}} {float(len(found["tokens"]))}' in counts
    assert 'path="/surprisal",status="200"' in counts


# turns ---------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that stands still but for `sleep` and `pass_takes`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def test_rows_that_decode_get_as_much_time_as_the_passes_took() -> None:
    clock = Clock()
    decoding = True
    turn = Turns(lambda: None, lambda: decoding, clock, clock.sleep)
    turn()
    assert clock.slept == 0  # no pass yet
    clock.now += 0.4
    turn()
    assert math.isclose(clock.slept, 0.4, abs_tol=0.02)
    clock.now += WORK_SECONDS / 2
    turn()  # so short a pass is not worth a turn
    assert math.isclose(clock.slept, 0.4, abs_tol=0.02)
    clock.now += WORK_SECONDS
    turn()  # but its time counts
    assert math.isclose(clock.slept, 0.4 + 1.5 * WORK_SECONDS, abs_tol=0.03)


def test_without_rows_that_decode_nothing_waits() -> None:
    clock = Clock()
    turn = Turns(lambda: None, lambda: False, clock, clock.sleep)
    for _ in range(5):
        clock.now += 1
        turn()
    assert clock.slept == 0


def test_rows_that_end_give_their_turn_back() -> None:
    clock = Clock()
    turn = Turns(lambda: None, lambda: clock.slept < 0.1, clock, clock.sleep)
    clock.now += 5
    turn()
    assert math.isclose(clock.slept, 0.1, abs_tol=0.02)


def test_a_client_that_leaves_ends_the_wait() -> None:
    clock = Clock()

    def check() -> None:
        if clock.slept > 0.1:
            raise KeyError("the client has left")

    turn = Turns(check, lambda: True, clock, clock.sleep)
    clock.now += 5
    with pytest.raises(KeyError):
        turn()
    assert clock.slept < 0.2
