"""Prompt lookup: what is proposed, and that the option leaves every continuation as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import complete, generate, perform, stream, stream_many
from runtime.cli import parser as cli
from runtime.generation.completion import Completion
from runtime.generation.speculation.proposers import Lookup
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from tests.generation.test_generation import text_of

PROMPT = "Once upon a time there was a little mouse who"
REPEATING = "The cat sat on the mat, and the dog sat on the log. " * 4
PROMPTS = [PROMPT, REPEATING, "The", "", "¿Qué tal, señor? El niño comió", "THE END.\n"]


def facts(found: Sequence[Completion]) -> list[dict[str, Any]]:
    varying = ("prefill_seconds", "decode_seconds", "logprobs", "top_logprobs")
    every = [{n: v for n, v in dataclasses.asdict(one).items() if n not in varying} for one in found]
    return [facts | {"top": [list(top) for top in one.top_logprobs]} for facts, one in zip(every, found, strict=True)]


# what is proposed --------------------------------------------------------------------------------------------------


def slow_lookup(ids: list[int], n: int) -> list[int]:
    """Read on from the latest earlier place where the last three ids stand, else two, as far as they were alike."""
    for size in (3, 2):
        places = [at for at in range(size, len(ids)) if ids[at - size : at] == ids[-size:]]
        if places:
            at, written = places[-1], list(ids)
            n_alike = next((k for k in range(at) if ids[at - 1 - k] != ids[-1 - k]), at)
            for source in range(at, at + min(n, n_alike - 1)):
                written.append(written[source])
            return written[len(ids) :]
    return []


@given(
    ids=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    cuts=st.lists(st.integers(1, 60), max_size=6),
    n=st.integers(1, 12),
)
def test_it_reads_on_from_the_latest_occurrence(ids: list[int], cuts: list[int], n: int) -> None:
    lookup = Lookup()
    for end in sorted({*(cut for cut in cuts if cut < len(ids)), len(ids)}):
        assert lookup.propose(ids[:end], n) == slow_lookup(ids[:end], n)


def test_a_repetition_is_read_round_and_round() -> None:
    assert Lookup().propose([7] * 12, 5) == [7] * 5
    assert Lookup().propose([1, 2, 3] * 4, 7) == [1, 2, 3, 1, 2, 3, 1]


def test_the_longer_the_match_the_more_is_proposed() -> None:
    assert Lookup().propose([1, 2, 3, 4, 5, 9, 1, 2], 8) == [3]
    assert Lookup().propose([1, 2, 3, 4, 5, 9, 1, 2, 3, 4], 8) == [5, 9, 1]


def test_without_a_repetition_nothing_is_proposed() -> None:
    assert Lookup().propose(list(range(50)), 8) == []
    assert Lookup().propose([1], 8) == []


# the option --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookup", [1, 4, 10, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop": [" the king", ".", "\n"]},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 4},
        {"presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"min_new_tokens": 60, "logprobs": 3},
        {"token_healing": True},
        {"temperature": 0.8, "top_k": 10, "seed": 5},
    ],
    ids=repr,
)
def test_greedy_and_seeded_ids_stay_the_same(demo_fp32: Model, lookup: int, options: dict[str, Any]) -> None:
    options = {"model": demo_fp32, "max_new_tokens": 60, **options}
    expected, found = complete(PROMPTS, **options), complete(PROMPTS, lookup=lookup, **options)
    assert facts(found) == facts(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-3)


@pytest.mark.parametrize(
    ("n_prompt", "options"),
    [
        (480, {"max_new_tokens": 32}),
        (300, {"max_new_tokens": 400, "overflow": "stop"}),
        (300, {"max_new_tokens": 300, "overflow": "truncate_left"}),
        (450, {"max_new_tokens": 500, "overflow": "slide", "pinned_tokens": 5}),
        (600, {"max_new_tokens": 300, "overflow": "slide"}),
    ],
    ids=repr,
)
def test_up_to_the_last_position_and_beyond(demo_fp32: Model, n_prompt: int, options: dict[str, Any]) -> None:
    options |= {"model": demo_fp32, "min_new_tokens": options["max_new_tokens"]}
    prompt = text_of(demo_fp32, n_prompt)
    [expected], [found] = complete(prompt, **options), complete(prompt, lookup=12, **options)
    assert facts([found]) == facts([expected])


def test_a_repeating_text_takes_few_passes(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    for name in ("extend", "step"):
        original = getattr(InPlaceCache, name)
        monkeypatch.setattr(
            InPlaceCache, name, lambda cache, ids, do=original, **rest: (taken.append(1), do(cache, ids, **rest))[1]
        )
    [found] = complete(REPEATING, model=demo_fp32, max_new_tokens=100, lookup=10)
    assert found.n_tokens > 1.5 * len(taken)


def test_every_function_takes_it(demo_fp32: Model, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 40}
    text = generate(REPEATING, **options)
    assert generate(REPEATING, lookup=8, **options) == "".join(stream(REPEATING, lookup=8, **options)) == text
    assert "".join(piece for _, piece in stream_many([REPEATING], lookup=8, **options)) == text
    task: dict[str, Any] = {"model": demo_fp32, "temperature": 0, "max_new_tokens": 20}
    assert perform("summarize", REPEATING, lookup=8, **task).text == perform("summarize", REPEATING, **task).text
    arguments = ["generate", REPEATING, "--max-new-tokens=40", "--lookup=8", "--model", str(demo_fp32.folder)]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{text}\n"


def test_a_plain_export_takes_it(demo_reference: Model, demo_fp32: Model) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "batch_size": 1}
    found = complete([REPEATING, PROMPT], model=demo_reference, lookup=6, **options)
    assert [one.ids for one in found] == [o.ids for o in complete([REPEATING, PROMPT], model=demo_fp32, **options)]


def test_wrong_use_is_refused_by_name(demo_fp32: Model) -> None:
    with pytest.raises(ValueError, match="lookup is -1"):
        generate(PROMPT, model=demo_fp32, lookup=-1)
    with pytest.raises(TypeError, match="lookup is True"):
        generate(PROMPT, model=demo_fp32, lookup=True)
    with pytest.raises(ValueError, match=r"lookup.*num_beams 2"):
        complete(PROMPT, model=demo_fp32, lookup=4, num_beams=2)
