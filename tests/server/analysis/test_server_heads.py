"""/v1/embeddings as OpenAI's client reads it, and /classify."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.heads.classification import as_json
from runtime.model.model import Model
from tests.support.checkpoints import build_model
from tests.support.classifiers import LABELS, write_classifier, write_tagger
from tests.support.openai_client import client as client
from tests.support.openai_client import model_id as model_id
from tests.support.serving import Running, running
from tests.support.serving import server as server

TEXTS = ["Once upon a time", "The old king slept.", "12 + 5"]


def test_embeddings_are_the_runtimes(client: Any, model_id: str, demo_int8: Model) -> None:
    # OpenAI's client asks for base64 by itself, and decodes it.
    reply = client.embeddings.create(model=model_id, input=TEXTS)
    assert [one.index for one in reply.data] == [0, 1, 2]
    found = np.array([one.embedding for one in reply.data], np.float32)
    assert np.array_equal(found, runtime.embed(TEXTS, model=demo_int8))
    n_tokens = sum(len(demo_int8.encode(text)) for text in TEXTS)
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (n_tokens, n_tokens)
    one = client.embeddings.create(model=model_id, input=TEXTS[0], encoding_format="float")
    assert np.allclose(one.data[0].embedding, found[0], atol=1e-6)


@pytest.mark.parametrize("given", [TEXTS[0], [TEXTS[0]], "ids", "lists"])
def test_texts_and_ids_are_read(server: Running, demo_int8: Model, given: Any) -> None:
    ids = demo_int8.encode(TEXTS[0])
    given = {"ids": ids, "lists": [ids]}.get(given, given) if isinstance(given, str) else given
    reply = server.post("/v1/embeddings", input=given, encoding_format="base64", pooling="last").json
    (entry,) = reply["data"]
    found = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")
    assert np.array_equal(found, runtime.embed(TEXTS[0], model=demo_int8, pooling="last"))
    assert (reply["object"], entry["object"]) == ("list", "embedding")


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"input": "a", "dimensions": 8}, "dimensions", "cannot be cut; leave it out"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'int8'"),
        ({"input": ""}, "input", "input[0] is '', which has no tokens"),
        ({"input": ["a", ""]}, "input", "input[1] is ''"),
        ({"input": []}, "input", "input is []"),
        ({"input": [[5], []]}, "input", "input is"),
        ({"input": [10**8]}, "input", "input[0][0] is 100000000"),
        ({"input": [5] * 513}, "input", "input[0] has 513 tokens, and the model has 512 positions"),
        ({"input": "a" * 300_000}, "input", "at most"),
        ({"input": 5}, "input", "input is 5"),
        ({}, "input", "input is missing"),
        ({"input": "a", "model": "other"}, "model", "there is no model 'other' here"),
        ({"input": "a", "prompt": "b"}, "prompt", "unknown field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_embedding_requests_name_the_field(server: Running, fields: Any, param: str, told: str) -> None:
    reply = server.post("/v1/embeddings", **fields)
    assert reply.status in (400, 404)
    assert reply.error["param"] == param
    assert told in reply.error["message"]


def test_a_reply_that_is_too_large_is_refused(demo_int8: Model) -> None:
    with running(demo_int8, max_reply_bytes=100_000) as small:
        error = small.post("/v1/embeddings", input=["a"] * 100).error
        assert (error["code"], error["param"]) == ("reply_too_large", "input")


def test_a_language_model_labels_nothing(server: Running) -> None:
    reply = server.post("/classify", input="a")
    assert (reply.status, reply.error["code"]) == (400, "not_a_classifier")
    assert server.request("GET", "/v1/models").json["data"][0]["labels"] is None


# classifiers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Running]]:
    folder: Path = tmp_path_factory.mktemp("served") / "texts"
    write_classifier(folder)
    with Model(build_model(folder), threads=1) as model, running(model) as one:
        yield model, one


def test_labels_are_the_runtimes(texts: tuple[Model, Running]) -> None:
    model, server = texts
    reply = server.post("/classify", input=TEXTS)
    assert reply.status == 200
    assert reply.json == {"results": [as_json(one) for one in runtime.classify(TEXTS, model=model)]}
    assert [one["label"] for one in reply.json["results"][0]["scores"]] == list(LABELS)
    assert server.post("/classify", input=TEXTS[0]).json["results"] == reply.json["results"][:1]
    assert server.post("/classify", input=model.encode(TEXTS[0])).json["results"] == reply.json["results"][:1]


def test_the_card_names_the_labels(texts: tuple[Model, Running]) -> None:
    (card,) = texts[1].request("GET", "/v1/models").json["data"]
    assert card["labels"] == list(LABELS)
    assert card["chat"] is False
    assert texts[1].request("GET", "/health").status == 200
    assert texts[1].request("GET", "/metrics").status == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/embeddings", {"input": "a"}),
    ],
)
def test_a_classifier_writes_nothing(texts: tuple[Model, Running], path: str, fields: Any) -> None:
    reply = texts[1].post(path, **fields)
    assert (reply.status, reply.error["code"]) == (400, "classifier")
    assert "POST /classify" in reply.error["message"]


def test_wrong_texts_name_the_field(texts: tuple[Model, Running]) -> None:
    for given, told in (("", "has no tokens"), ([5] * 97, "97 tokens"), ([[5], [300]], "input[1][0] is 300")):
        reply = texts[1].post("/classify", input=given)
        assert (reply.status, reply.error["param"]) == (400, "input")
        assert told in reply.error["message"]


def test_labels_of_tokens(tmp_path: Path) -> None:
    write_tagger(tmp_path / "tokens")
    with Model(build_model(tmp_path / "tokens"), threads=1) as model, running(model) as server:
        (found,) = server.post("/classify", input=TEXTS[1]).json["results"]
        expected = runtime.classify(TEXTS[1], model=model)
        assert [(one["text"], tuple(one["span"]), one["label"]) for one in found["tokens"]] == [
            (one.text, one.span, one.label) for one in expected.tokens
        ]
        assert [one["label"] for one in found["spans"]] == [one.label for one in expected.spans]
