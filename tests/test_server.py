"""The server, spoken to by OpenAI's own client."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import runtime
from runtime.model import Model
from runtime.scoring import score_ids
from runtime.text import encode
from tests.serving import Running, running, wait_until

openai = pytest.importorskip("openai")

PROMPT = "Once upon a time"
PROMPTS = [f"{PROMPT}, {who}" for who in ("a king", "the wolf", "she", "an old man, who", "it", "we", "no one", "God")]


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def model_id(demo_int8: Model) -> str:
    return demo_int8.folder.name


def ours(choice: Any) -> dict[str, Any]:
    """What OpenAI's reply has no place for."""
    details: dict[str, Any] = choice.gpt2_edge
    return details


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


# log-probabilities -------------------------------------------------------------------------------------------------


def test_logprobs_are_completes(client: Any, model_id: str, demo_int8: Model) -> None:
    fields: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "seed": 4, "logprobs": 3}
    (choice,) = client.completions.create(model=model_id, **fields).choices
    (expected,) = runtime.complete(PROMPT, model=demo_int8, max_new_tokens=12, seed=4, temperature=1.0, logprobs=3)
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert told.token_logprobs == pytest.approx(expected.logprobs)
    for token, logprob, top, known in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, expected.top_logprobs, strict=True
    ):
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(list(known.values()))
        assert top[token] == logprob  # the one that was chosen is always there
        assert len(top) in (3, 4)
    starts = [len(PROMPT) + sum(map(len, told.tokens[:index])) for index in range(len(told.tokens))]
    assert told.text_offset == starts


def test_parts_of_characters_have_names_of_their_own(client: Any, model_id: str, demo_int8: Model) -> None:
    prompt = "A 🙂 at €5"
    fields: dict[str, Any] = {"model": model_id, "prompt": prompt, "echo": True, "max_tokens": 0, "logprobs": 1}
    (choice,) = client.completions.create(**fields).choices
    tokens = choice.logprobs.tokens
    values = b"".join(
        bytes.fromhex(token.removeprefix("bytes:").replace("\\x", "")) if token.startswith("bytes:") else token.encode()
        for token in tokens
    )
    assert values.decode() == prompt == choice.text
    assert any(token.startswith("bytes:") for token in tokens)
    smile = [at for token, at in zip(tokens, choice.logprobs.text_offset, strict=True) if token.startswith("bytes:")]
    assert {1, 2} & {*smile}


def test_an_echoed_prompt_is_scored(client: Any, model_id: str, demo_int8: Model) -> None:
    """As lm-evaluation-harness asks of a completions API, with and without a token more."""
    ids = encode(demo_int8, PROMPTS[3])
    expected = score_ids(demo_int8, ids)
    for n_new in (0, 1):
        reply = client.completions.create(
            model=model_id, prompt=[ids], max_tokens=n_new, logprobs=1, echo=True, temperature=0
        )
        told = reply.choices[0].logprobs
        assert told.token_logprobs[0] is None
        assert told.top_logprobs[0] is None
        assert told.token_logprobs[1 : len(ids)] == pytest.approx(expected.logprobs)
        greedy = [
            logprob == max(top.values())
            for logprob, top in zip(told.token_logprobs[1 : len(ids)], told.top_logprobs[1 : len(ids)], strict=True)
        ]
        assert greedy == expected.greedy
        assert len(told.tokens) == len(ids) + n_new
        assert reply.choices[0].text.startswith(PROMPTS[3])
        assert reply.usage.completion_tokens == n_new


def test_of_a_stop_string_no_token_is_shown(client: Any, model_id: str) -> None:
    fields: dict[str, Any] = {"model": model_id, "prompt": PROMPT, "max_tokens": 40, "seed": 3, "logprobs": 0}
    whole = client.completions.create(**fields).choices[0]
    stop = whole.logprobs.tokens[7]
    cut = client.completions.create(stop=stop, **fields).choices[0]
    assert stop not in cut.text
    assert "".join(cut.logprobs.tokens) == cut.text == whole.text[: whole.text.index(stop)]


# streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_joins_to_the_whole(client: Any, model_id: str) -> None:
    fields: dict[str, Any] = {"model": model_id, "prompt": PROMPT, "max_tokens": 30, "seed": 3, "logprobs": 2}
    whole = client.completions.create(**fields)
    chunks = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **fields))
    *texts, last, usage = chunks
    assert usage.choices == []
    assert usage.usage == whole.usage
    assert len(texts) > 1
    assert all(chunk.choices[0].finish_reason is None for chunk in texts)
    assert last.choices[0].finish_reason == "length"
    parts = [chunk.choices[0] for chunk in (*texts, last)]
    assert "".join(part.text for part in parts) == whole.choices[0].text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        told = [value for part in parts for value in getattr(part.logprobs, name)]
        assert told == getattr(whole.choices[0].logprobs, name)
    assert all("".join(part.logprobs.tokens) == part.text for part in parts)


def test_streams_of_several_are_told_apart(client: Any, model_id: str, demo_int8: Model) -> None:
    chunks = client.completions.create(
        model=model_id, prompt=PROMPTS[:3], n=2, max_tokens=10, seed=1, stream=True, echo=True
    )
    texts = dict.fromkeys(range(6), "")
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    expected = runtime.complete(PROMPTS[:3], model=demo_int8, n=2, max_new_tokens=10, seed=1, temperature=1.0)
    assert list(texts.values()) == [PROMPTS[one.prompt_index] + one.text for one in expected]


def test_leaving_a_stream_ends_its_row(client: Any, server: Running, model_id: str) -> None:
    with client.completions.create(model=model_id, prompt=PROMPT, max_tokens=450, stream=True) as stream:
        next(iter(stream))
        assert server.engine.n_open == 1
    wait_until(lambda: server.engine.n_open == 0 and server.engine.n_running == 0, 5)


# at the same time --------------------------------------------------------------------------------------------------


def test_eight_at_a_time_each_get_what_they_get_alone(client: Any, model_id: str, demo_int8: Model) -> None:
    """They join and leave a running batch at different steps, sampled and greedy, streamed and not."""

    def ask(index: int) -> list[int]:
        fields: dict[str, Any] = {"max_tokens": 20 + 9 * index, "seed": index, "temperature": 1.0 if index % 2 else 0}
        if index % 3:
            (choice,) = client.completions.create(model=model_id, prompt=PROMPTS[index], **fields).choices
        else:
            *_, last = client.completions.create(model=model_id, prompt=PROMPTS[index], stream=True, **fields)
            (choice,) = last.choices
        ids: list[int] = ours(choice)["ids"]
        return ids

    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            together = list(pool.map(ask, range(8)))
            for index, ids in enumerate(together):
                options: Any = {"max_new_tokens": 20 + 9 * index, "seed": index, "temperature": float(index % 2)}
                (alone,) = runtime.complete(PROMPTS[index], model=demo_int8, **options)
                assert ids == alone.ids


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
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    before = value("gpt2_edge_new_tokens_total")
    server.post(prompt=PROMPT, max_tokens=7)
    assert value("gpt2_edge_new_tokens_total") == before + 7
    assert value("gpt2_edge_running") == 0
