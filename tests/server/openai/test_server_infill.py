"""/v1/completions with a suffix: the texts are those of the samples, ranked as `runtime.infill` ranks them."""

from __future__ import annotations

import re
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from tests.conftest import count_passes
from tests.support.serving import Running
from tests.support.serving import server as server

PROMPT = "The old king lived in"
SUFFIX = ", and the queen lived there too."


def choices(server: Running, **fields: Any) -> list[Any]:
    reply = server.post(**{"prompt": PROMPT, "suffix": SUFFIX, "max_tokens": 5, "seed": 3, **fields})
    assert reply.status == 200, reply.body
    found: list[Any] = reply.json["choices"]
    return found


def test_the_best_of_eight_is_that_of_python(server: Running, demo_int8: Model) -> None:
    expected = runtime.infill(PROMPT, SUFFIX, model=demo_int8, max_new_tokens=5, seed=3)
    assert len(expected) == 8
    [found] = choices(server)
    assert found["text"] == expected[0].text
    assert found["gpt2_edge"]["suffix_logprob"] == pytest.approx(expected[0].suffix.logprob, abs=1e-4)
    every = choices(server, n=8)
    assert [one["text"] for one in every] == [one.text for one in expected]
    assert [one["index"] for one in every] == list(range(8))


def test_each_prompt_has_its_own_best(server: Running, demo_int8: Model) -> None:
    prompts = [PROMPT, "She walked to"]
    found = choices(server, prompt=prompts, best_of=3, n=2)
    for at, prompt in enumerate(prompts):
        expected = runtime.infill(prompt, SUFFIX, model=demo_int8, max_new_tokens=5, seed=3, best_of=3)
        assert [one["text"] for one in found[2 * at : 2 * at + 2]] == [one.text for one in expected[:2]]


def test_what_is_counted(server: Running, demo_int8: Model) -> None:
    """The suffix counts as part of the prompt, and every middle as written."""
    reply = server.post(prompt=PROMPT, suffix=SUFFIX, max_tokens=5, min_new_tokens=5, best_of=4, logprobs=1)
    usage = reply.json["usage"]
    assert usage["prompt_tokens"] == len(demo_int8.encode(PROMPT)) + len(demo_int8.encode(SUFFIX))
    assert usage["completion_tokens"] == 4 * 5
    [choice] = reply.json["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


def test_without_a_suffix_there_is_no_rank_by_it(server: Running) -> None:
    for suffix in ("", None):
        [choice] = choices(server, suffix=suffix, seed=1)
        assert "suffix_logprob" not in choice["gpt2_edge"]


def test_ranking_takes_the_prompt_from_the_prompt_cache(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = re.sub("old", "young", PROMPT + " a castle. ") * 40
    passes = count_passes(monkeypatch, "extend")
    assert len(choices(server, prompt=prompt, best_of=3)) == 1
    assert passes.count(PREFILL_STEP) == 1


def test_a_client_of_openai_fills_in(server: Running) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        done = client.completions.create(
            model=server.engine.model_id, prompt=PROMPT, suffix=SUFFIX, max_tokens=5, best_of=4, seed=3
        )
    [expected] = choices(server, best_of=4)
    assert done.choices[0].text == expected["text"]
