"""/tokenize and /detokenize in llama.cpp's form, and the name of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from runtime.model.model import Model
from tests.support.serving import Running, running

TEXT = "Once upon a time, señor 🙂"


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8, alias="tiny") as one:
        yield one


@pytest.fixture(scope="module")
def tokenizer(demo_int8: Model) -> Tokenizer:
    """That of the file, as tokenizers reads it."""
    return Tokenizer.from_file(str(demo_int8.folder / "tokenizer.json"))


def test_the_ids_are_those_of_tokenizers(server: Running, tokenizer: Tokenizer) -> None:
    ids = server.post("/tokenize", content=TEXT).json
    assert ids == {"tokens": tokenizer.encode(TEXT, add_special_tokens=False).ids}
    assert server.post("/detokenize", **ids).json == {"content": TEXT}
    assert server.post("/tokenize", content="").json == {"tokens": []}
    assert server.post("/detokenize", tokens=[]).json == {"content": ""}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_every_text_comes_back(server: Running, text: str) -> None:
    tokens = server.post("/tokenize", content=text, with_pieces=True).json["tokens"]
    assert server.post("/detokenize", tokens=[one["id"] for one in tokens]).json == {"content": text}
    joined = b"".join(
        bytes(one["piece"]) if isinstance(one["piece"], list) else one["piece"].encode() for one in tokens
    )
    assert joined.decode() == text


def test_a_part_of_a_character_is_bytes(server: Running) -> None:
    tokens = server.post("/tokenize", content="🙂", with_pieces=True).json["tokens"]
    assert [one["piece"] for one in tokens if isinstance(one["piece"], list)]


def test_special_tokens_are_read_as_llama_cpp_reads_them(server: Running, tokenizer: Tokenizer) -> None:
    end = tokenizer.token_to_id("<|endoftext|>")
    text = "a<|endoftext|>b"
    read = server.post("/tokenize", content=text).json["tokens"]
    assert read.count(end) == 1
    assert server.post("/tokenize", content=text, parse_special=True, add_special=False).json["tokens"] == read
    written = server.post("/tokenize", content=text, parse_special=False).json["tokens"]
    assert end not in written
    for ids in (read, written):
        assert server.post("/detokenize", tokens=ids).json == {"content": text}


@pytest.mark.parametrize(
    ("path", "fields", "param", "told"),
    [
        ("/tokenize", {}, "content", "missing"),
        ("/tokenize", {"content": 5}, "content", "5"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "prompt", "unknown field"),
        ("/tokenize", {"content": "a" * 300_000}, "content", "send it in parts"),
        ("/detokenize", {"tokens": [10**8]}, "tokens", "outside the vocabulary"),
        ("/detokenize", {"tokens": [-1]}, "tokens", "-1"),
        ("/detokenize", {"tokens": ["a"]}, "tokens", "'a'"),
        ("/detokenize", {"tokens": [1] * 300_000}, "tokens", "send it in parts"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_named(server: Running, path: str, fields: Any, param: str, told: str) -> None:
    reply = server.post(path, **fields)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert told in reply.error["message"]


def test_a_reply_with_pieces_is_bounded(demo_int8: Model) -> None:
    with running(demo_int8, max_reply_bytes=1000) as server:
        reply = server.post("/tokenize", content="a b " * 20, with_pieces=True)
        assert (reply.status, reply.error["code"]) == (400, "reply_too_large")
        assert server.post("/tokenize", content="a b " * 20).status == 200


def test_the_alias_is_the_name(server: Running, demo_int8: Model) -> None:
    assert [one["id"] for one in server.request("GET", "/v1/models").json["data"]] == ["tiny"]
    assert server.request("GET", "/v1/models/tiny").json["id"] == "tiny"
    assert server.post(prompt="a", max_tokens=1, model="tiny").json["model"] == "tiny"
    assert server.post(prompt="a", max_tokens=1).json["model"] == "tiny"
    reply = server.post(prompt="a", max_tokens=1, model=demo_int8.folder.name)
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
