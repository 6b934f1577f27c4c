"""The server, spoken to by OpenAI's own client: completions, tasks, and what is not a completion."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from runtime.tokenization.encode import encode
from tests.support.openai_client import PROMPT, PROMPTS, ours
from tests.support.openai_client import client as client
from tests.support.openai_client import model_id as model_id
from tests.support.openai_client import server as server
from tests.support.serving import Running

openai = pytest.importorskip("openai")


# completions -------------------------------------------------------------------------------------------------------


def test_a_completion_is_what_generate_writes(client: Any, model_id: str, demo_int8: Model) -> None:
    reply = client.completions.create(model=model_id, prompt=PROMPT, max_tokens=20, temperature=0)
    (expected,) = runtime.complete(PROMPT, model=demo_int8, max_new_tokens=20)
    (choice,) = reply.choices
    assert choice.text == expected.text
    assert ours(choice)["ids"] == expected.ids
    assert (choice.finish_reason, ours(choice)["finish_reason"]) == ("length", "length")
    assert reply.object == "text_completion"
    assert reply.model == model_id
    n_prompt = len(encode(demo_int8, PROMPT))
    assert reply.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": n_prompt,
        "completion_tokens": 20,
        "total_tokens": n_prompt + 20,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_defaults_are_openais(client: Any, model_id: str, demo_int8: Model) -> None:
    """16 tokens of the model's own distribution."""
    (choice,) = client.completions.create(model=model_id, prompt=PROMPT, seed=5).choices
    (expected,) = runtime.complete(PROMPT, model=demo_int8, max_new_tokens=16, temperature=1.0, seed=5)
    assert ours(choice)["ids"] == expected.ids
    drawn = [ours(client.completions.create(model=model_id, prompt=PROMPT).choices[0])["seed"] for _ in range(2)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"stop": [" the"]}, {"stop": [" the"]}),
        ({"stop": " the"}, {"stop": " the"}),
        ({"logit_bias": {"11": -100, "262": 3.5}}, {"logit_bias": {11: -100, 262: 3.5}}),
        ({"presence_penalty": 1.5, "frequency_penalty": 0.5}, {"presence_penalty": 1.5, "frequency_penalty": 0.5}),
        ({"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.7, "top_p": 0.8}),
        ({"extra_body": {"top_k": 3, "min_p": 0.01, "typical_p": 0.9}}, {"top_k": 3, "min_p": 0.01, "typical_p": 0.9}),
        ({"extra_body": {"repetition_penalty": 1.3}}, {"repetition_penalty": 1.3}),
        ({"extra_body": {"no_repeat_ngram_size": 2}}, {"no_repeat_ngram_size": 2}),
        ({"extra_body": {"suppress_ids": [11, 13]}}, {"suppress_ids": [11, 13]}),
        ({"extra_body": {"stop_ids": [11]}}, {"stop_ids": [11]}),
        ({"extra_body": {"min_new_tokens": 20}}, {"min_new_tokens": 20}),
        ({"extra_body": {"token_healing": True}}, {"token_healing": True}),
        ({"extra_body": {"special_tokens": True}}, {"special_tokens": True}),
    ],
    ids=str,
)
def test_options_do_what_they_do_in_python(
    client: Any, model_id: str, demo_int8: Model, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    (choice,) = client.completions.create(model=model_id, prompt=PROMPT, max_tokens=30, seed=3, **fields).choices
    given = {"temperature": 1.0, **options}
    (expected,) = runtime.complete(PROMPT, model=demo_int8, max_new_tokens=30, seed=3, **given)  # type: ignore[arg-type]
    assert (choice.text, ours(choice)["ids"]) == (expected.text, expected.ids)
    assert ours(choice)["finish_reason"] == expected.finish_reason
    assert choice.finish_reason == ("length" if expected.finish_reason == "length" else "stop")


def test_null_is_the_default(server: Running) -> None:
    body = {"prompt": PROMPT, "seed": 5, "stop": None, "logit_bias": None, "n": None, "stream": None, "top_k": None}
    assert (
        server.post(**body).json["choices"][0]["text"] == server.post(prompt=PROMPT, seed=5).json["choices"][0]["text"]
    )


def test_many_prompts_and_samples(client: Any, model_id: str, demo_int8: Model) -> None:
    reply = client.completions.create(model=model_id, prompt=PROMPTS[:2], n=2, max_tokens=6, seed=8)
    expected = runtime.complete(PROMPTS[:2], model=demo_int8, n=2, max_new_tokens=6, seed=8, temperature=1.0)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [ours(choice)["ids"] for choice in reply.choices] == [one.ids for one in expected]
    assert reply.usage.prompt_tokens == sum(len(encode(demo_int8, prompt)) for prompt in PROMPTS[:2])
    assert reply.usage.completion_tokens == 24


def test_token_ids_are_prompts_too(client: Any, model_id: str, demo_int8: Model) -> None:
    ids = [encode(demo_int8, prompt) for prompt in PROMPTS[:2]]
    texts = client.completions.create(model=model_id, prompt=PROMPTS[:2], max_tokens=6, temperature=0)
    for prompt, n in ((ids, 2), (ids[0], 1)):
        reply = client.completions.create(model=model_id, prompt=prompt, max_tokens=6, temperature=0)
        assert [one.text for one in reply.choices] == [one.text for one in texts.choices[:n]]


def test_the_best_of_several_come_first(client: Any, model_id: str, demo_int8: Model) -> None:
    fields: dict[str, Any] = {"model": model_id, "prompt": PROMPT, "max_tokens": 8, "seed": 2}
    reply = client.completions.create(best_of=4, n=2, **fields)
    every = runtime.complete(PROMPT, model=demo_int8, n=4, max_new_tokens=8, seed=2, temperature=1.0)
    best = sorted(every, key=lambda one: -one.logprob / one.n_tokens)[:2]
    assert [ours(choice)["ids"] for choice in reply.choices] == [one.ids for one in best]
    assert reply.usage.completion_tokens == sum(one.n_tokens for one in every)


# tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "fields", "options"),
    [
        ("summarize", {"seed": 3}, {"seed": 3}),
        ("translate", {"extra_body": {"to": "French"}}, {"to": "French"}),
        ("answer", {"extra_body": {"examples": []}, "max_tokens": 5}, {"examples": (), "max_new_tokens": 5}),
        (
            "read",
            {"extra_body": {"question": "Who?", "turns": [["a", "b"]]}},
            {"question": "Who?", "turns": [("a", "b")]},
        ),
        ("choose", {"extra_body": {"options": ["king", "wolf"]}}, {"options": ["king", "wolf"]}),
        ("last_word", {}, {}),
    ],
)
def test_tasks_are_performs(
    client: Any, model_id: str, demo_int8: Model, task: str, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    text = "The old king went into the"
    extra = {"task": task, **fields.pop("extra_body", {})}
    (choice,) = client.completions.create(model=model_id, prompt=text, extra_body=extra, **fields).choices
    expected = runtime.perform(task, text, model=demo_int8, **options)
    assert choice.text == ours(choice)["answer"] == expected.text
    confidence = ours(choice).get("confidence")
    assert confidence == expected.confidence or math.isclose(confidence, expected.confidence or 0)
    assert ours(choice).get("probabilities", {}) == dict(expected.probabilities)
    if expected.completion:
        assert ours(choice)["ids"] == expected.completion.ids


def test_a_streamed_task_ends_with_its_answer(client: Any, model_id: str, demo_int8: Model) -> None:
    text = "The old king went into the wood."
    extra: dict[str, Any] = {"task": "summarize"}
    chunks = list(client.completions.create(model=model_id, prompt=text, seed=3, stream=True, extra_body=extra))
    expected = runtime.perform("summarize", text, model=demo_int8, seed=3)
    assert expected.completion
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.completion.text
    assert ours(chunks[-1].choices[0])["answer"] == expected.text


# the rest ----------------------------------------------------------------------------------------------------------


def test_the_model_is_listed(client: Any, model_id: str, demo_int8: Model) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.object) == (model_id, "model")
    assert card.max_model_len == demo_int8.config.n_positions
    assert client.models.retrieve(model_id) == card
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.models.retrieve("gpt-4")


def test_metrics_count_tokens(server: Running) -> None:
    def value(name: str) -> float:
        lines = server.request("GET", "/metrics").body.decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}{{model="))

    before = value("gpt2_edge_new_tokens_total")
    server.post(prompt=PROMPT, max_tokens=7)
    assert value("gpt2_edge_new_tokens_total") == before + 7
    # The row leaves the batch after the reply has been sent.
    ends = time.monotonic() + 10
    while value("gpt2_edge_running") and time.monotonic() < ends:
        time.sleep(0.01)
    assert value("gpt2_edge_running") == 0
