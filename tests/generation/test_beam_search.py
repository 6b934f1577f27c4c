"""Beam search against transformers: the same ids, order and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, PreTrainedTokenizerFast

import runtime
from runtime import Completion
from runtime.model.model import Model
from runtime.tokenization.encode import encode_prompt
from tests.conftest import DEMO
from tests.support.checkpoints import open_checkpoint
from tests.support.searching import END, Pair
from tests.support.searching import tiny as tiny
from tests.support.searching import tiny_folder as tiny_folder

STORY = "Once upon a time there was a little mouse who"
LENGTH_PENALTIES = [0.0, 0.5, 1.0, 2.0, -1.0]
EARLY_STOPPING = [False, True, "never"]


@pytest.fixture(scope="module")
def demo(demo_fp32: Model) -> Pair:
    return Pair(demo_fp32, open_checkpoint(DEMO))


class Counting(LogitsProcessor):
    """presence_penalty and frequency_penalty, which transformers lacks."""

    def __init__(self, n_prompt: int, presence: float, frequency: float) -> None:
        self._n_prompt, self._presence, self._frequency = n_prompt, presence, frequency

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        generated = input_ids[:, self._n_prompt :]
        counts = torch.zeros_like(scores).scatter_add_(1, generated, torch.ones_like(generated, dtype=scores.dtype))
        return scores - self._presence * (counts > 0) - self._frequency * counts


def expect(pair: Pair, prompt_ids: Sequence[int], **options: Any) -> list[tuple[list[int], float]]:
    """Ids and score of every continuation that transformers returns, for options under the runtime's names."""
    ends = sorted(pair.model.config.eos_token_ids) + list(options.pop("stop_ids", ()))
    stop = options.pop("stop", None)
    presence, frequency = options.pop("presence_penalty", 0.0), options.pop("frequency_penalty", 0.0)
    biases = {(id_,): value for id_, value in options.pop("logit_bias", {}).items()}
    with torch.no_grad():
        found = pair.checkpoint.generate(
            torch.tensor([list(prompt_ids)]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.int64),
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=0,
            num_return_sequences=options.pop("n", 1),
            suppress_tokens=list(options.pop("suppress_ids", ())) or None,
            sequence_bias=biases or None,
            stop_strings=stop,
            tokenizer=PreTrainedTokenizerFast(tokenizer_file=str(DEMO / "tokenizer.json")) if stop else None,
            logits_processor=[Counting(len(prompt_ids), presence, frequency)] if presence or frequency else None,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    n_new = (found.beam_indices >= 0).sum(1).tolist()
    rows = [row[len(prompt_ids) :][:n].tolist() for row, n in zip(found.sequences, n_new, strict=True)]
    ids = [row[:-1] if row[-1] in ends else row for row in rows]
    return list(zip(ids, found.sequences_scores.tolist(), strict=True))


def check(pair: Pair, prompt: str, **options: Any) -> list[Completion]:
    """Compare with transformers; returns what the runtime found."""
    found = runtime.complete(prompt, model=pair.model, **options)
    expected = expect(pair, encode_prompt(pair.model, prompt), **options)
    assert [completion.ids for completion in found] == [ids for ids, _ in expected]
    scores = [completion.beam_score for completion in found]
    assert scores == pytest.approx([score for _, score in expected], abs=1e-4, rel=1e-5)
    assert [completion.sample_index for completion in found] == list(range(len(found)))
    return found


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
@pytest.mark.parametrize("num_beams", [2, 3, 4, 5])
def test_every_search_equals_transformers(
    tiny: Pair, num_beams: int, length_penalty: float, early_stopping: bool | str
) -> None:
    check(
        tiny,
        "x",
        num_beams=num_beams,
        n=num_beams,
        max_new_tokens=12,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )


def test_the_searches_compared_differ(tiny: Pair) -> None:
    """What the comparisons above are worth: ends of text come early and late, and each option matters."""
    found = {
        (length_penalty, early_stopping): runtime.complete(
            "x",
            model=tiny.model,
            num_beams=5,
            n=5,
            max_new_tokens=12,
            length_penalty=length_penalty,
            early_stopping=early_stopping,  # type: ignore[arg-type]
        )
        for length_penalty in LENGTH_PENALTIES
        for early_stopping in EARLY_STOPPING
    }
    every = [completion for one in found.values() for completion in one]
    assert {completion.finish_reason for completion in every} == {"eos", "length"}
    assert len({len(completion.ids) for completion in every}) > 4
    ids = {key: [completion.ids for completion in one] for key, one in found.items()}
    for first, second in ((False, True), (False, "never"), (True, "never")):
        assert any(ids[one, first] != ids[one, second] for one in LENGTH_PENALTIES)
    assert len({str(ids[one, False]) for one in LENGTH_PENALTIES}) > 2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_num_beams(tiny: Pair, n: int) -> None:
    check(tiny, "Good morning", num_beams=4, n=n, max_new_tokens=10)


PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 1.1},
    {"presence_penalty": 0.7, "frequency_penalty": 0.2},
    {"frequency_penalty": -0.5},
    {"logit_bias": {END: 2.0, 65: 3.0, 66: -5.0}},
    {"suppress_ids": [END, 10, 20, 30]},
    {"min_new_tokens": 5},
    {"min_new_tokens": 4, "stop_ids": list(range(60, 90))},
    {"stop_ids": list(range(60, 90))},
    {"stop_ids": [END, 61]},
]


@pytest.mark.parametrize("penalties", PENALTIES, ids="-".join)
@pytest.mark.parametrize("length_penalty", [1.0, 0.0])
def test_penalties_and_ends_equal_transformers(tiny: Pair, penalties: dict[str, Any], length_penalty: float) -> None:
    check(tiny, "Hello there", num_beams=4, n=4, max_new_tokens=10, length_penalty=length_penalty, **penalties)


@st.composite
def searches(draw: st.DrawFn) -> dict[str, Any]:
    """Options of a search, any of them at once."""
    num_beams = draw(st.integers(2, 5))
    ids = st.lists(st.integers(0, 255), max_size=30, unique=True)
    max_new_tokens = draw(st.integers(1, 10))
    return {
        "num_beams": num_beams,
        "n": draw(st.integers(1, num_beams)),
        "length_penalty": draw(st.sampled_from(LENGTH_PENALTIES)),
        "early_stopping": draw(st.sampled_from(EARLY_STOPPING)),
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": draw(st.integers(0, max_new_tokens)),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.2, 0.9])),
        "no_repeat_ngram_size": draw(st.integers(0, 3)),
        "logit_bias": {END: draw(st.sampled_from([0.0, 1.0, 3.0]))},
        "suppress_ids": draw(ids),
        "stop_ids": draw(ids),
    }


@given(prompt=st.text(st.characters(codec="ascii"), max_size=20), options=searches())
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_any_options_equal_transformers(tiny: Pair, prompt: str, options: dict[str, Any]) -> None:
    check(tiny, prompt, **options)


@pytest.mark.parametrize("prompt", ["", "a", "b" * 70])
def test_prompts_of_any_length_up_to_the_context_limit(tiny: Pair, prompt: str) -> None:
    room = tiny.model.config.n_positions - max(1, len(prompt))
    found = check(tiny, prompt, num_beams=3, n=3, max_new_tokens=room, suppress_ids=[END])
    assert {len(completion.ids) for completion in found} == {room}


@pytest.mark.parametrize("num_beams", [2, 5])
def test_one_new_token(tiny: Pair, num_beams: int) -> None:
    check(tiny, "Hello", num_beams=num_beams, n=num_beams, max_new_tokens=1)


@pytest.mark.parametrize(
    ("num_beams", "options"),
    [
        (2, {"max_new_tokens": 30}),
        (4, {"max_new_tokens": 20, "no_repeat_ngram_size": 3}),
        (3, {"max_new_tokens": 20, "repetition_penalty": 1.2, "early_stopping": "never"}),
        (5, {"max_new_tokens": 25, "stop_ids": "ends"}),
        (4, {"max_new_tokens": 25, "stop_ids": "ends", "length_penalty": 0.0, "early_stopping": True}),
    ],
)
def test_the_demo_equals_transformers(demo: Pair, num_beams: int, options: dict[str, Any]) -> None:
    tokenizer = demo.model.tokenizer
    ends = [tokenizer.token_to_id(token) for token in (".", "!", ",")]
    options = options | ({"stop_ids": ends} if "stop_ids" in options else {})
    check(demo, STORY, num_beams=num_beams, n=num_beams, **options)


def test_a_prompt_of_several_prefill_passes(demo: Pair) -> None:
    check(demo, (STORY + " lived in a house. ") * 25, num_beams=3, n=3, max_new_tokens=8)


@pytest.mark.parametrize("stop", [[" the"], [". ", "mouse", ","], ["e"]])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_stop_strings_equal_transformers(demo: Pair, stop: list[str], early_stopping: bool) -> None:
    found = check(demo, STORY, num_beams=4, n=4, max_new_tokens=15, stop=stop, early_stopping=early_stopping)
    assert any(completion.finish_reason == "stop" for completion in found)
    for completion in found:
        written = demo.model.tokenizer.decode(completion.ids)
        ends = [written.index(one) for one in stop if one in written]
        assert completion.finish_reason == ("stop" if ends else "length")
        assert completion.text == written[: min(ends, default=None)]
