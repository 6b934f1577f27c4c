"""What stock clients send: taken where it changes nothing, done where it can be, refused by name where it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from tests.support.chat_folders import chatty
from tests.support.serving import Running, running

openai = pytest.importorskip("openai")

PROMPT = "Once upon a time"
TEMPLATE = "{% for m in messages %}{{ m.role }}{{ m.name or '' }}: {{ m.content }}\n{% endfor %}assistant:"
HELLO = [{"role": "user", "content": "hi"}]
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_int8_folder: Path) -> Iterator[Model]:
    folder = chatty(tmp_path_factory.mktemp("clients") / "chatty", demo_int8_folder, TEMPLATE)
    with Model(folder, verify="off") as one:
        yield one


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Running]:
    with running(model) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def greedy(server: Running, path: str, **fields: Any) -> Any:
    """A reply's choices, without the times; temperature 0 unless the fields say otherwise."""
    prompt = {"prompt": PROMPT} if path == COMPLETIONS else {"messages": HELLO}
    reply = server.post(path, **{"temperature": 0, "max_tokens": 6, **prompt, **fields})
    assert reply.status == 200, reply.body
    choices = reply.json["choices"]
    for choice in choices:
        del choice["gpt2_edge"]["prefill_seconds"], choice["gpt2_edge"]["decode_seconds"]
    return choices


# what changes nothing -----------------------------------------------------------------------------------------------

OF_BOTH: list[dict[str, Any]] = [
    {"user": "ann", "safety_identifier": "a", "prompt_cache_key": "b"},
    {"metadata": {}},
    {"metadata": {"run": "5"}},
    {"store": False},
    {"store": None, "metadata": None, "service_tier": None, "response_format": None},
    {"service_tier": "auto"},
    {"top_p": 0.9},
    {"top_k": 5, "min_p": 0.1},
    {"seed": -1},
    {"logit_bias": {}},
    {"stop": []},
    {"response_format": {"type": "text"}},
]
OF_COMPLETIONS: list[dict[str, Any]] = [{"suffix": ""}, {"suffix": None}, {"n": 1, "best_of": 1, "logprobs": None}]
OF_CHAT: list[dict[str, Any]] = [
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": False},
    {"tools": None, "functions": [], "function_call": "auto"},
    {"modalities": ["text"], "audio": None, "prediction": None, "web_search_options": None},
    {"reasoning_effort": "none"},
    {"logprobs": False, "top_logprobs": 0},
    {"max_tokens": 6, "max_completion_tokens": 6},
    {"max_tokens": None, "max_completion_tokens": 6},
]


@pytest.mark.parametrize(
    ("path", "fields"),
    [(COMPLETIONS, one) for one in OF_BOTH + OF_COMPLETIONS] + [(CHAT, one) for one in OF_BOTH + OF_CHAT],
    ids=str,
)
def test_what_changes_nothing_is_taken(server: Running, path: str, fields: dict[str, Any]) -> None:
    assert greedy(server, path, **fields) == greedy(server, path)


def test_seed_minus_one_draws_a_seed(server: Running) -> None:
    drawn = {
        server.post(prompt=PROMPT, max_tokens=2, seed=-1).json["choices"][0]["gpt2_edge"]["seed"] for _ in range(3)
    }
    assert len(drawn) == 3
    assert min(drawn) >= 0


# what is done --------------------------------------------------------------------------------------------------------


def test_parts_of_text_are_joined_by_line_ends(server: Running) -> None:
    parts = [{"type": "text", "text": "Who are you?"}, {"type": "text", "text": "And where?"}]
    plain = greedy(server, CHAT, messages=[{"role": "user", "content": "Who are you?\nAnd where?"}])
    assert greedy(server, CHAT, messages=[{"role": "user", "content": parts}]) == plain
    assert plain != greedy(server, CHAT, messages=[{"role": "user", "content": "Who are you?"}])


def test_parts_cannot_hold_a_special_token(server: Running) -> None:
    parts = [{"type": "text", "text": "a <|endoftext|>"}]
    reply = server.post(CHAT, messages=[{"role": "user", "content": parts}])
    assert (reply.status, "special token" in reply.error["message"]) == (400, True)


def test_a_reply_is_sent_back_as_the_client_has_it(client: Any) -> None:
    turns: list[Any] = list(HELLO)
    for _ in range(2):
        reply = client.chat.completions.create(model="chatty", messages=turns, max_tokens=2)
        turns += [reply.choices[0].message, *HELLO]
    whole = reply.choices[0].message.model_dump()
    assert whole["tool_calls"] is None
    client.chat.completions.create(model="chatty", messages=[*HELLO, whole, *HELLO], max_tokens=2)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_json_object_is_one(server: Running, path: str) -> None:
    (choice,) = greedy(server, path, response_format={"type": "json_object"}, max_tokens=40)
    text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
    assert isinstance(json.loads(text), dict)


def test_a_json_schema_is_that_of_the_option(client: Any, model: Model) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    reply = client.chat.completions.create(
        model="chatty", messages=HELLO, temperature=0, max_completion_tokens=20, response_format=form
    )
    text = reply.choices[0].message.content
    assert text == runtime.generate("user: hi\nassistant:", model=model, json_schema=SCHEMA, max_new_tokens=20)
    assert isinstance(json.loads(text)["age"], int)


def test_a_pydantic_model_comes_back_parsed(client: Any) -> None:
    """`parse` of openai's client sends the schema of a class, and reads the reply into it."""
    from pydantic import BaseModel

    class Person(BaseModel):
        age: int

    reply = client.chat.completions.parse(model="chatty", messages=HELLO, max_tokens=20, response_format=Person)
    assert isinstance(reply.choices[0].message.parsed, Person)


# requests as other libraries make them ------------------------------------------------------------------------------

# In the form of these libraries, which the development environment does not have.
OF_LIBRARIES: dict[str, tuple[str, dict[str, Any]]] = {
    "litellm, text completion": (
        COMPLETIONS,
        {
            "model": "chatty",
            "prompt": PROMPT,
            "max_tokens": 5,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "litellm, chat": (
        CHAT,
        {
            "model": "chatty",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
            "temperature": 0.0,
            "top_p": 1,
            "max_completion_tokens": 5,
        },
    ),
    "langchain-openai, chat": (
        CHAT,
        {
            "messages": [{"content": "hi", "role": "user"}],
            "model": "chatty",
            "max_completion_tokens": 5,
            "stream": False,
            "temperature": 0.7,
            "n": 1,
        },
    ),
    "langchain-openai, content parts": (
        CHAT,
        {
            "messages": [
                {"content": [{"type": "text", "text": "hi"}], "role": "user", "name": "ann"},
                {"content": "hello", "role": "assistant", "refusal": None, "tool_calls": []},
                {"content": "and now?", "role": "user"},
            ],
            "model": "chatty",
            "max_tokens": 5,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "langchain-openai, completion": (
        COMPLETIONS,
        {
            "model": "chatty",
            "prompt": [PROMPT],
            "frequency_penalty": 0,
            "logit_bias": {"50": 1},
            "max_tokens": 5,
            "n": 1,
            "presence_penalty": 0,
            "seed": None,
            "temperature": 0.7,
            "top_p": 1,
            "logprobs": None,
        },
    ),
}


@pytest.mark.parametrize(("path", "fields"), OF_LIBRARIES.values(), ids=OF_LIBRARIES)
def test_requests_of_other_libraries_are_taken(server: Running, path: str, fields: dict[str, Any]) -> None:
    reply = server.post(path, **fields)
    assert reply.status == 200, reply.body
    if fields.get("stream"):
        *_, last, done, empty = reply.body.split(b"\n\n")
        assert (done, empty) == (b"data: [DONE]", b"")
        assert json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"] == 5


# what is refused -----------------------------------------------------------------------------------------------------

IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (COMPLETIONS, {"suffix": "the end", "temperature": 0}, "temperature", "all middles are the same"),
    (COMPLETIONS, {"store": True}, "store", "keeps no completions"),
    (COMPLETIONS, {"store": 0}, "store", "keeps no completions"),
    (COMPLETIONS, {"metadata": {"a": 5}}, "metadata", "5"),
    (COMPLETIONS, {"metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16"),
    (COMPLETIONS, {"service_tier": "flex"}, "service_tier", "one service tier"),
    (COMPLETIONS, {"temperature": 0, "typical_p": 0.5}, "typical_p", "temperature 0"),
    (COMPLETIONS, {"temperature": 1, "top_p": 0}, "top_p", "0"),
    (COMPLETIONS, {"response_format": {"type": "xml"}}, "response_format", "xml"),
    (COMPLETIONS, {"response_format": {"type": "json_schema"}}, "response_format", "json_schema is missing"),
    (COMPLETIONS, {"response_format": {"type": "json_object"}, "regex": "a"}, "response_format", "one of them"),
    (COMPLETIONS, {"response_format": {"type": "json_object"}, "stop": "a"}, "stop", "stop does not go with"),
    (COMPLETIONS, {"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options", "pad"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format", "schema"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "calls no tools"),
    (CHAT, {"tool_choice": "required"}, "tool_choice", "calls no tools"),
    (CHAT, {"function_call": {"name": "f"}}, "function_call", "calls no tools"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities", "text only"),
    (CHAT, {"audio": {"voice": "a"}}, "audio", "text only"),
    (CHAT, {"prediction": {"type": "content", "content": "a"}}, "prediction", "predicted output"),
    (CHAT, {"reasoning_effort": "high"}, "reasoning_effort", "does not reason"),
    (CHAT, {"web_search_options": {}}, "web_search_options", "searches nothing"),
    (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "give one"),
    (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, "messages", "'image_url' is not supported"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, "messages", "at least 1"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages", "None"),
    (CHAT, {"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}, "messages", "calls no tools"),
    (CHAT, {"messages": [{"role": "user", "content": "a", "refusal": "no"}]}, "messages", "never refusals"),
]


@pytest.mark.parametrize(("path", "fields", "param", "told"), REFUSED, ids=str)
def test_what_would_change_the_reply_is_refused_by_name(
    server: Running, path: str, fields: dict[str, Any], param: str, told: str
) -> None:
    prompt = {"prompt": PROMPT} if path == COMPLETIONS else {"messages": HELLO}
    reply = server.post(path, **{**prompt, **fields})
    assert (reply.status, reply.error["param"]) == (400, param), reply.body
    assert told in reply.error["message"]
