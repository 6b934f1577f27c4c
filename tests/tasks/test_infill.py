"""Infilling: middles are ranked as by brute force, and nothing that they share is computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

import runtime
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from tests.conftest import count_passes
from tests.conftest import torch_demo as torch_demo

PROMPT = "The old king lived in"
SUFFIX = ", and the queen lived there too."
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "seed": 4, "best_of": 6}


def brute_force(model: GPT2LMHeadModel, ids: Sequence[int], suffix_ids: Sequence[int]) -> float:
    """log P(suffix | ids) by transformers, of one pass over all of it."""
    whole = torch.tensor([[*ids, *suffix_ids]])
    with torch.no_grad():
        logprobs = model(whole).logits[0].log_softmax(-1)
    at = range(len(ids) - 1, len(ids) + len(suffix_ids) - 1)
    return float(sum(logprobs[i, id_] for i, id_ in zip(at, suffix_ids, strict=True)))


# as by brute force --------------------------------------------------------------------------------------------------


def test_middles_are_ranked_as_by_brute_force(demo_fp32: Model, torch_demo: GPT2LMHeadModel) -> None:
    prompt_ids, suffix_ids = demo_fp32.encode(PROMPT), demo_fp32.encode(SUFFIX)
    found = runtime.infill(PROMPT, SUFFIX, model=demo_fp32, **OPTIONS)
    expected = [brute_force(torch_demo, [*prompt_ids, *one.completion.ids], suffix_ids) for one in found]
    assert [one.suffix.logprob for one in found] == pytest.approx(expected, abs=2e-3)
    assert expected == sorted(expected, reverse=True)
    assert len({one.text for one in found}) > 1
    assert all(one.suffix.ids == suffix_ids for one in found)


def test_middles_are_the_samples_of_complete(demo_fp32: Model) -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "best_of"}
    expected = runtime.complete(PROMPT, model=demo_fp32, n=6, temperature=1.0, **options)
    found = runtime.infill(PROMPT, SUFFIX, model=demo_fp32, **OPTIONS)
    assert sorted(one.text for one in found) == sorted(one.text for one in expected)
    assert {one.completion.sample_index for one in found} == set(range(6))


@pytest.mark.parametrize(
    "options",
    [
        {"stop": "e"},
        {"choices": [" a castle", " the"], "max_new_tokens": 8},
        {"token_healing": True, "max_new_tokens": 4},
        {"token_healing": True, "stop": ["e", "a"]},
        {"batch_size": 2},
    ],
    ids=str,
)
def test_the_suffix_follows_the_text_that_is_returned(demo_fp32: Model, options: dict[str, Any]) -> None:
    """Whatever ends a middle: the score is that of the suffix after the text, where that has the same ids."""
    prompt = "The old king lived in the cast" if "token_healing" in options else PROMPT
    for one in runtime.infill(prompt, SUFFIX, model=demo_fp32, **{**OPTIONS, **options}):
        [score] = runtime.score([demo_fp32.encode(SUFFIX)], context=prompt + one.text, model=demo_fp32)
        same = demo_fp32.encode(prompt + one.text)
        written = [*demo_fp32.encode(prompt), *one.completion.ids]
        if "token_healing" in options or "stop" in options or same == written:
            assert one.suffix.logprob == pytest.approx(score.logprob, abs=2e-3), one


def test_int8_differs_as_other_scores_do(demo_int8: Model) -> None:
    suffix_ids = demo_int8.encode(SUFFIX)
    for one in runtime.infill(PROMPT, SUFFIX, model=demo_int8, **OPTIONS):
        context = [*demo_int8.encode(PROMPT), *one.completion.ids]
        score = runtime.score(suffix_ids, context=context, model=demo_int8)
        assert one.suffix.logprobs == pytest.approx(score.logprobs, abs=0.3)


def test_ids_are_taken_as_they_are(demo_fp32: Model) -> None:
    prompt_ids, suffix_ids = demo_fp32.encode(PROMPT), demo_fp32.encode(SUFFIX)
    texts = runtime.infill(PROMPT, SUFFIX, model=demo_fp32, **OPTIONS)
    ids = runtime.infill(prompt_ids, suffix_ids, model=demo_fp32, **OPTIONS)
    assert [(one.text, one.suffix) for one in ids] == [(one.text, one.suffix) for one in texts]


# what it costs ------------------------------------------------------------------------------------------------------


def test_the_prompt_is_run_once_to_write_and_its_rest_once_to_rank(
    demo_int8: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documented cost, in tokens: no middle runs the prompt again, and equal middles are scored once."""
    prompt = demo_int8.encode((PROMPT + " a castle. ") * 60)[: PREFILL_STEP + 40]
    suffix_ids = demo_int8.encode(SUFFIX)
    extended = count_passes(monkeypatch, "extend")
    found = runtime.infill(prompt, suffix_ids, model=demo_int8, **OPTIONS)
    different = {tuple(one.completion.ids) for one in found}
    ranked = sum(len(ids) + len(suffix_ids) - 1 for ids in different)
    assert sum(extended) == PREFILL_STEP + 40 + 40 + ranked
    extended.clear()
    choices = [demo_int8.decode([id_]) for id_ in (262, 257)]
    found = runtime.infill(prompt, suffix_ids, model=demo_int8, **OPTIONS, choices=choices)
    different = {tuple(one.completion.ids) for one in found}
    assert len(different) < len(found)
    assert sum(extended) == PREFILL_STEP + 80 + sum(len(ids) + len(suffix_ids) - 1 for ids in different)


def test_a_prefix_changes_nothing_and_saves_its_tokens(demo_int8: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    beginning = (PROMPT + " a castle. ") * 40
    known = runtime.prefix(beginning, model=demo_int8)
    assert known.n_kept == PREFILL_STEP
    expected = runtime.infill(beginning + PROMPT, SUFFIX, model=demo_int8, **OPTIONS)
    extended = count_passes(monkeypatch, "extend")
    found = runtime.infill(beginning + PROMPT, SUFFIX, model=demo_int8, prefix=known, **OPTIONS)
    assert [(one.text, one.suffix) for one in found] == [(one.text, one.suffix) for one in expected]
    assert max(extended) < PREFILL_STEP


# what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ({"suffix": ""}, ValueError, "the suffix is empty: there is nothing to rank by"),
        ({"suffix": []}, (TypeError, ValueError), "suffix"),
        ({"suffix": 3}, TypeError, "suffix is 3"),
        ({"suffix": [10**6]}, ValueError, "suffix"),
        ({"best_of": 1}, ValueError, "best_of is 1; at least 2"),
        ({"best_of": 0}, ValueError, "best_of is 0"),
        ({"best_of": "4"}, TypeError, "best_of"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"temperature": 0}, runtime.OptionError, "at temperature 0 all middles are the same"),
        ({"overflow": "slide"}, runtime.OptionError, "overflow='slide' is for a prompt that is continued"),
        ({"max_new_tokens": 506}, runtime.ContextLengthError, "more than the 513 that a model of 512 positions"),
        ({"suffix": "a" * 10**6}, runtime.ContextLengthError, "512"),
        ({"prompt": "a" * 10**6}, runtime.ContextLengthError, "512"),
        ({"top_pp": 0.5}, TypeError, "top_p"),
        ({"num_return_sequences": 5}, TypeError, "n of runtime.complete"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_is_wrong_is_told(demo_fp32: Model, given: dict[str, Any], kind: Any, told: str) -> None:
    with pytest.raises(kind) as raised:
        runtime.infill(**{"prompt": PROMPT, "suffix": SUFFIX, "model": demo_fp32, **given})
    assert told in str(raised.value)


def test_what_just_fits_is_ranked(demo_fp32: Model) -> None:
    """The last token of the suffix is predicted, and not fed."""
    n_positions = demo_fp32.config.n_positions
    prompt = [5] * (n_positions - 5)
    [*_, last] = runtime.infill(prompt, [7, 8, 9], model=demo_fp32, max_new_tokens=3, best_of=2, suppress_ids=[0])
    assert len(last.suffix.logprobs) == 3
    with pytest.raises(runtime.ContextLengthError, match="1 more than"):
        runtime.infill([5, *prompt], [7, 8, 9], model=demo_fp32, max_new_tokens=3, best_of=2)
