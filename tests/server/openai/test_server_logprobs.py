"""Log-probabilities that the server gives, read by OpenAI's own client."""

from __future__ import annotations

from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from runtime.scoring.scoring import score_ids
from runtime.tokenization.encode import encode
from tests.support.openai_client import PROMPT, PROMPTS
from tests.support.openai_client import client as client
from tests.support.openai_client import model_id as model_id
from tests.support.openai_client import server as server


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
