"""The server's streams, and many requests at the same time, asked for by OpenAI's own client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import runtime
from runtime.model.model import Model
from tests.support.openai_client import PROMPT, PROMPTS, ours
from tests.support.openai_client import client as client
from tests.support.openai_client import model_id as model_id
from tests.support.openai_client import server as server
from tests.support.serving import Running, wait_until

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


def test_a_proxy_does_not_keep_a_stream_back(server: Running) -> None:
    streamed = server.post(prompt=PROMPT, max_tokens=2, stream=True)
    assert streamed.headers["x-accel-buffering"] == "no"
    assert streamed.headers["cache-control"] == "no-cache"
    assert "x-accel-buffering" not in server.post(prompt=PROMPT, max_tokens=2).headers


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
                # the server takes a seed beside greedy decoding, as OpenAI's clients send it
                sampled: Any = {"seed": index, "temperature": 1.0} if index % 2 else {}
                (alone,) = runtime.complete(PROMPTS[index], model=demo_int8, max_new_tokens=20 + 9 * index, **sampled)
                assert ids == alone.ids
