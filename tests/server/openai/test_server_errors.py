"""What the server refuses: always in OpenAI's shape, naming the field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.model.model import Model
from tests.support.serving import Running, running

PROMPT = "Once upon a time"
JSON = "application/json"


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8, max_tokens=600, queue=4, rows=2, timeout=60) as one:
        yield one


WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, "prompt", "missing"),
    ({"prompt": None}, "prompt", "must be a text"),
    ({"prompt": 5}, "prompt", "must be a text"),
    ({"prompt": []}, "prompt", "must be a text"),
    ({"prompt": [[]]}, "prompt", "must be a text"),
    ({"prompt": ["a", 1]}, "prompt", "must be a text"),
    ({"prompt": [1.5]}, "prompt", "must be a text"),
    ({"prompt": [True]}, "prompt", "must be a text"),
    ({"prompt": [-1]}, "prompt", "must be a text"),
    ({"prompt": {"a": 1}}, "prompt", "must be a text"),
    ({"prompt": [10**9]}, "prompt", "vocabulary"),
    ({"prompt": [10**30]}, "prompt", "must be a text"),
    ({"prompt": "a \ud800"}, None, "lone surrogate"),
    ({"prompt": PROMPT, "max_token": 5}, "max_token", "unknown field 'max_token'"),
    ({"prompt": PROMPT, "\ud800": 5}, None, "lone surrogate"),
    ({"prompt": PROMPT, "max_new_tokens": 5}, "max_new_tokens", "unknown field"),
    ({"prompt": PROMPT, "cancel": 5}, "cancel", "unknown field"),
    ({"prompt": PROMPT, "max_tokens": "5"}, "max_tokens", "'5'"),
    ({"prompt": PROMPT, "max_tokens": 5.0}, "max_tokens", "5.0"),
    ({"prompt": PROMPT, "max_tokens": True}, "max_tokens", "True"),
    ({"prompt": PROMPT, "max_tokens": -1}, "max_tokens", "-1"),
    ({"prompt": PROMPT, "max_tokens": 0}, "max_tokens", "echo"),
    ({"prompt": PROMPT, "max_tokens": 601}, "max_tokens", "limit is 600"),
    ({"prompt": PROMPT, "max_tokens": 10**40}, "max_tokens", "max_tokens"),
    ({"prompt": PROMPT, "max_tokens": 510}, "prompt", "512 positions; max_tokens can be at most"),
    ({"prompt": PROMPT * 50_000}, "prompt", "characters"),
    ({"prompt": PROMPT, "temperature": -0.5}, "temperature", "-0.5"),
    ({"prompt": PROMPT, "temperature": 0, "typical_p": 0.5}, "typical_p", "temperature 0 does not sample"),
    ({"prompt": PROMPT, "temperature": 0, "n": 2}, "n", "temperature 0"),
    ({"prompt": PROMPT, "top_p": 1.5}, "top_p", "1.5"),
    ({"prompt": PROMPT, "top_p": 0}, "top_p", "0"),
    ({"prompt": PROMPT, "n": 0}, "n", "0"),
    ({"prompt": PROMPT, "n": 7}, None, "takes 6 at a time"),
    ({"prompt": [PROMPT] * 7}, None, "takes 6 at a time"),
    ({"prompt": PROMPT, "best_of": 1, "n": 2}, "best_of", "best_of is 1, n is 2"),
    ({"prompt": PROMPT, "best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
    ({"prompt": PROMPT, "logprobs": 21}, "logprobs", "21"),
    ({"prompt": PROMPT, "logprobs": True}, "logprobs", "True"),
    ({"prompt": PROMPT, "suffix": " the end", "n": 7}, None, "takes 6 at a time"),
    ({"prompt": PROMPT, "suffix": " the end", "stream": True}, "stream", "cannot be streamed"),
    ({"prompt": PROMPT, "suffix": " the end", "best_of": 1}, "best_of", "at least 2 are needed"),
    ({"prompt": PROMPT, "suffix": " the end", "best_of": 2, "echo": True}, "echo", "leave it out"),
    ({"prompt": PROMPT, "suffix": " the end", "best_of": 2, "task": "summarize"}, "suffix", "leave one of them out"),
    (
        {"prompt": PROMPT, "suffix": " the end", "best_of": 2, "temperature": 0},
        "temperature",
        "all middles are the same",
    ),
    ({"prompt": PROMPT, "suffix": " the end", "best_of": 2, "overflow": "slide"}, "overflow", "fit together"),
    ({"prompt": PROMPT, "suffix": " the end" * 255, "best_of": 2}, "prompt", "and a suffix of 510 tokens"),
    ({"prompt": PROMPT, "stream": "yes"}, "stream", "yes"),
    ({"prompt": PROMPT, "stream_options": {"include_usage": True}}, "stream_options", "goes with stream"),
    ({"prompt": PROMPT, "stream": True, "stream_options": {"x": 1}}, "stream_options", "stream_options.x"),
    ({"prompt": PROMPT, "stop": ""}, "stop", "not empty"),
    ({"prompt": PROMPT, "stop": 5}, "stop", "5"),
    ({"prompt": PROMPT, "stop": ["a"] * 17}, "stop", "at most 16"),
    ({"prompt": PROMPT, "stop": "a" * 300}, "stop", "at most 256"),
    ({"prompt": PROMPT, "seed": -2}, "seed", "-2"),
    ({"prompt": PROMPT, "seed": 2**64}, "seed", "seed"),
    ({"prompt": PROMPT, "logit_bias": {"a": 1}}, "logit_bias", "logit_bias"),
    ({"prompt": PROMPT, "logit_bias": {"99999999": 1}}, None, "vocabulary"),
    ({"prompt": PROMPT, "logit_bias": {"5": "1"}}, "logit_bias", "'1'"),
    ({"prompt": PROMPT, "logit_bias": [1]}, "logit_bias", "[1]"),
    ({"prompt": PROMPT, "presence_penalty": float("nan")}, "presence_penalty", "nan"),
    ({"prompt": PROMPT, "frequency_penalty": float("inf")}, "frequency_penalty", "inf"),
    ({"prompt": PROMPT, "top_k": -1}, "top_k", "-1"),
    ({"prompt": PROMPT, "top_k": 2**40}, "top_k", "top_k"),
    ({"prompt": PROMPT, "typical_p": 0}, "typical_p", "0"),
    ({"prompt": PROMPT, "overflow": "wrap"}, "overflow", "truncate_left"),
    ({"prompt": PROMPT, "overflow": "slide", "pinned_tokens": 400}, "pinned_tokens", "pinned_tokens"),
    ({"prompt": PROMPT, "min_new_tokens": 40}, "min_new_tokens", "min_new_tokens 40 is above max_tokens"),
    ({"prompt": PROMPT, "suppress_ids": ["a"]}, "suppress_ids", "'a'"),
    ({"prompt": PROMPT, "lookup": 5}, "lookup", "alone"),
    ({"prompt": PROMPT, "deadline": 61}, "deadline", "limit is 60"),
    ({"prompt": PROMPT, "to": "French"}, None, "set task"),
    ({"prompt": PROMPT, "task": "sing"}, None, "no task 'sing'"),
    ({"prompt": PROMPT, "task": "translate", "to": "Klingon"}, None, "Klingon"),
    ({"prompt": PROMPT, "task": "translate", "question": "?"}, None, "'question' is no field of translate"),
    ({"prompt": PROMPT, "task": "read"}, None, "needs question"),
    ({"prompt": PROMPT, "task": "choose"}, None, "needs options"),
    ({"prompt": PROMPT, "task": "choose", "options": ["a"]}, None, "two or more"),
    ({"prompt": PROMPT, "task": "choose", "options": ["a", "b"], "max_tokens": 3}, None, "writes nothing"),
    ({"prompt": PROMPT, "task": "choose", "options": ["a", "b"], "temperature": 1.0}, None, "temperature"),
    ({"prompt": PROMPT, "task": "answer", "echo": True}, None, "echo"),
    ({"prompt": [1, 2], "task": "answer"}, None, "not token ids"),
    ({"prompt": " ", "task": "answer"}, None, "empty"),
    ({"prompt": PROMPT, "task": "summarize", "abstain_below": 0.5}, None, "confidence"),
    ({"prompt": PROMPT, "task": "answer", "examples": [["a"]]}, "examples", "examples"),
]


@pytest.mark.parametrize(("body", "param", "told"), WRONG, ids=lambda value: ascii(value)[:60])
def test_a_wrong_field_is_named(server: Running, body: dict[str, Any], param: str | None, told: str) -> None:
    reply = server.post(**body)
    assert reply.status == 400, reply.body
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == param
    assert told in reply.error["message"]
    assert len(reply.error["message"]) < 2500


def test_a_prompt_that_is_too_long_has_the_code_that_clients_know(server: Running) -> None:
    for body in ({"max_tokens": 510}, {"prompt": "a " * 600}, {"prompt": "a" * 10**6}):
        assert server.post(**{"prompt": PROMPT, **body}).error["code"] == "context_length_exceeded"
    scored = server.post(prompt=[[5] * 514], max_tokens=0, echo=True, logprobs=1)
    assert scored.error["code"] == "context_length_exceeded"
    assert server.post(prompt=[[5] * 513], max_tokens=0, echo=True, logprobs=1).status == 200
    assert server.post(prompt=[[5] * 600], max_tokens=5, overflow="truncate_left").status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"prompt"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b"{" * 5000,
        b"[" * 100_000,
        b'{"prompt": 1e999}',
        b"NaN",
    ],
    ids=lambda body: str(body[:12]),
)
def test_what_is_no_json_object_is_refused(server: Running, body: bytes) -> None:
    reply = server.request("POST", "/v1/completions", body, Content_Type=JSON)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert any(told in reply.error["message"] for told in ("JSON", "must be a text"))


def test_json_is_sent_as_json(server: Running) -> None:
    """A form on a web page elsewhere can post text, and must not reach the model."""
    body = json.dumps({"prompt": PROMPT}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = server.request("POST", "/v1/completions", body, Content_Type=kind)
        assert reply.status == 400
        assert JSON in reply.error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405),
        ("DELETE", "/", 405),
        ("GET", "/docs", 404),
        ("GET", "/v1/embeddings", 405),
        ("GET", "/../runtime/api.py", 404),
        ("GET", "/page.js/..%2f..%2fapi.py", 404),
        ("GET", "/%00", 404),
        ("GET", "/v1/models/%F0%9F%99%82", 404),
        ("BREW", "/health", 405),
    ],
)
def test_addresses_that_are_none(server: Running, method: str, path: str, status: int) -> None:
    reply = server.request(method, path)
    assert reply.status == status
    assert reply.error["message"]


def test_another_model_is_not_found(server: Running) -> None:
    for path, fields in (("/v1/completions", {"prompt": PROMPT}), ("/v1/chat/completions", {"messages": [MESSAGE]})):
        reply = server.post(path, model="gpt-4", **fields)
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")


MESSAGE = {"role": "user", "content": "Who are you?"}


def test_without_a_chat_template_there_is_no_chat(server: Running) -> None:
    reply = server.post("/v1/chat/completions", messages=[MESSAGE])
    assert (reply.status, reply.error["code"]) == (400, "no_chat_template")
    assert "/v1/completions" in reply.error["message"]


def test_a_failing_row_leaves_the_others(server: Running) -> None:
    """Every id is suppressed: nothing is left to choose, which shows at the first pass only."""
    reply = server.post(prompt=PROMPT, logit_bias={}, suppress_ids=list(range(server.engine.model.config.vocab_size)))
    assert reply.status == 400
    assert "leave no token" in reply.error["message"]
    streamed = server.post(prompt=PROMPT, stream=True, suppress_ids=list(range(server.engine.model.config.vocab_size)))
    assert streamed.status == 200
    first, done, _ = streamed.body.split(b"\n\n")
    assert "leave no token" in json.loads(first.removeprefix(b"data: "))["error"]["message"]
    assert done == b"data: [DONE]"
    assert server.post(prompt=PROMPT).status == 200


def test_a_failing_pass_ends_its_requests_and_no_others(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.generation.batch import Batch

    def fail(batch: Batch) -> Any:
        monkeypatch.undo()
        raise RuntimeError("onnxruntime could not run the model: out of memory")

    monkeypatch.setattr(Batch, "advance", fail)
    reply = server.post(prompt=PROMPT)
    assert (reply.status, reply.error["type"]) == (500, "server_error")
    assert "out of memory" in reply.error["message"]
    assert server.post(prompt=PROMPT).status == 200
