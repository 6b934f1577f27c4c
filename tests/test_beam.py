"""Beam search against transformers: the same ids, order and scores; and what is the runtime's own."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel, LogitsProcessor, PreTrainedTokenizerFast

import runtime
from runtime import Completion
from runtime.cache import Cache
from runtime.growing_cache import GrowingCache
from runtime.logprobs import log_softmax
from runtime.model import Model
from runtime.text import encode_prompt
from tests.checkpoints import build_model, open_checkpoint, write_checkpoint
from tests.conftest import DEMO

END = 256  # the tiny model's end of text
STORY = "Once upon a time there was a little mouse who"
LENGTH_PENALTIES = [0.0, 0.5, 1.0, 2.0, -1.0]
EARLY_STOPPING = [False, True, "never"]


class Pair(NamedTuple):
    """A model and the checkpoint it was built from."""

    model: Model
    checkpoint: GPT2LMHeadModel


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat distribution over bytes, in which the end of text is one of the likelier ids everywhere."""
    folder = tmp_path_factory.mktemp("beam") / "tiny"
    checkpoint = write_checkpoint(folder, n_layer=2)
    with torch.no_grad():
        norm = checkpoint.transformer.ln_f
        norm.weight *= 0.25
        norm.bias *= 0.25
        checkpoint.transformer.wte.weight[END] = 4 * norm.bias / (norm.bias @ norm.bias)
    checkpoint.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Iterator[Pair]:
    with Model(build_model(tiny_folder), threads=1) as model:
        yield Pair(model, open_checkpoint(tiny_folder))


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


def test_a_truncated_prompt_is_the_rest_of_it(tiny: Pair) -> None:
    prompt = "".join(chr(97 + index % 26) for index in range(150))
    room = tiny.model.config.n_positions - 10
    options: dict[str, Any] = {"num_beams": 3, "n": 3, "max_new_tokens": 10}
    cut = runtime.complete(prompt, model=tiny.model, overflow="truncate_left", **options)
    rest = runtime.complete(prompt[-room:], model=tiny.model, **options)
    assert [one.ids for one in cut] == [one.ids for one in rest]
    assert {(one.n_truncated, one.n_prompt_tokens) for one in cut} == {(150 - room, 150)}


def test_overflow_stop_ends_at_the_context(tiny: Pair) -> None:
    room = 6
    prompt = "b" * (tiny.model.config.n_positions - room)
    options: dict[str, Any] = {"num_beams": 3, "n": 3, "suppress_ids": [END]}
    found = runtime.complete(prompt, model=tiny.model, overflow="stop", max_new_tokens=50, **options)
    fitting = runtime.complete(prompt, model=tiny.model, max_new_tokens=room, **options)
    assert [one.ids for one in found] == [one.ids for one in fitting]
    assert {one.finish_reason for one in found} == {"context"}
    assert {one.finish_reason for one in fitting} == {"length"}


def test_logprobs_are_the_models_own(tiny: Pair) -> None:
    prompt = "Hello there"
    found = runtime.complete(
        prompt, model=tiny.model, num_beams=4, n=4, max_new_tokens=8, logprobs=3, repetition_penalty=1.5
    )
    assert any(one.finish_reason == "eos" for one in found)
    for one in found:
        ids = encode_prompt(tiny.model, prompt) + one.ids
        logits = tiny.model.new_cache(len(ids)).extend(ids, keep=len(one.ids) + 1)
        table = log_softmax(logits)[:-1]
        assert one.logprobs == pytest.approx(table[np.arange(len(one.ids)), one.ids].tolist(), abs=1e-5)
        for row, top in zip(table, one.top_logprobs, strict=True):
            assert list(top) == np.argsort(-row, kind="stable")[:3].tolist()
            assert list(top.values()) == pytest.approx(np.sort(row)[::-1][:3].tolist(), abs=1e-5)


def test_without_penalties_the_score_is_the_mean_logprob(tiny: Pair) -> None:
    for one in runtime.complete("Hello", model=tiny.model, num_beams=3, n=3, max_new_tokens=8, suppress_ids=[END]):
        assert one.beam_score == pytest.approx(one.logprob / one.n_tokens, abs=1e-5)
        assert one.top_logprobs == []
        assert one.seed is None


@pytest.mark.parametrize("n_passes", [1, 2, 5])
def test_cancelled_is_the_best_so_far(tiny: Pair, n_passes: int) -> None:
    asked = iter(range(100))
    options: dict[str, Any] = {"num_beams": 4, "n": 4}
    found = runtime.complete(
        "Hello there", model=tiny.model, max_new_tokens=50, cancel=lambda: next(asked) >= n_passes, **options
    )
    shorter = runtime.complete("Hello there", model=tiny.model, max_new_tokens=n_passes, **options)
    assert [(one.ids, one.beam_score) for one in found] == [(one.ids, one.beam_score) for one in shorter]
    assert [one.finish_reason for one in found] == [
        "cancelled" if one.finish_reason == "length" else one.finish_reason for one in shorter
    ]


@pytest.mark.parametrize(
    ("option", "reason"), [({"deadline": 1e-9}, "deadline"), ({"cancel": lambda: True}, "cancelled")]
)
def test_what_has_not_begun_is_empty(tiny: Pair, option: dict[str, Any], reason: str) -> None:
    found = runtime.complete(["one", "two"], model=tiny.model, num_beams=3, n=2, **option)
    assert [(one.prompt_index, one.sample_index) for one in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {(one.text, one.finish_reason) for one in found} == {("", reason)}


def test_a_far_deadline_changes_nothing(tiny: Pair) -> None:
    check_options: dict[str, Any] = {"num_beams": 3, "n": 3, "max_new_tokens": 6}
    late = runtime.complete("Hello", model=tiny.model, deadline=600.0, **check_options)
    assert [one.ids for one in late] == [
        one.ids for one in runtime.complete("Hello", model=tiny.model, **check_options)
    ]


def test_int8_beams_are_the_same_alone_and_among_others(tiny_folder: Path) -> None:
    prompts = ["Hello there", "x", "A longer prompt than the others"]
    options: dict[str, Any] = {"num_beams": 4, "n": 3, "max_new_tokens": 12, "logprobs": 1}
    with Model(build_model(tiny_folder, "int8"), threads=1) as model:
        together = runtime.complete(prompts, model=model, **options)
        alone = [one for prompt in prompts for one in runtime.complete(prompt, model=model, **options)]
    assert [one.prompt_index for one in together] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    known = [(one.ids, one.logprobs, one.beam_score, one.finish_reason, one.text) for one in together]
    assert known == [(one.ids, one.logprobs, one.beam_score, one.finish_reason, one.text) for one in alone]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0.5}, ValueError, "temperature 0.5 does not go with num_beams 3"),
        ({"seed": 7}, ValueError, "seed 7 does not go with num_beams 3"),
        ({"overflow": "slide"}, ValueError, "overflow 'slide' does not go with num_beams 3"),
        ({"token_healing": True}, ValueError, "token_healing does not go with num_beams 3"),
        ({"n": 4}, ValueError, "n is 4, more than num_beams 3"),
        ({"num_beams": 0}, ValueError, "num_beams is 0"),
        ({"num_beams": 2.5}, TypeError, "num_beams is 2.5"),
        ({"length_penalty": "1"}, TypeError, "length_penalty is '1'"),
        ({"length_penalty": math.nan}, ValueError, "length_penalty is nan"),
        ({"length_penalty": 1000}, ValueError, "length_penalty is 1000"),
        ({"early_stopping": "always"}, ValueError, "early_stopping is 'always'"),
        ({"early_stopping": 1}, ValueError, "early_stopping is 1"),
        ({"num_beams": 1, "length_penalty": 2.0}, ValueError, "set num_beams above 1"),
        ({"num_beams": 1, "early_stopping": True}, ValueError, "set num_beams above 1"),
        ({"num_beams": 1, "n": 2}, ValueError, "set temperature or num_beams"),
        ({"logprobs": 301}, ValueError, "logprobs is 301; the model has 300 tokens"),
        ({"logit_bias": {300: 1.0}}, ValueError, "token id 300"),
        ({"max_new_tokens": 500}, ValueError, "max_new_tokens can be at most"),
    ],
)
def test_conflicts_are_errors(tiny: Pair, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        runtime.complete("Hello", model=tiny.model, **{"num_beams": 3} | options)


def test_a_plain_export_refuses_beams_by_name(tiny: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.model, "is_fused", False)
    with pytest.raises(ValueError, match=r"tiny-fp32 is a plain ONNX export .* num_beams must be 1, not 3"):
        runtime.complete("Hello", model=tiny.model, num_beams=3)


def test_too_few_continuations_are_an_error(tiny: Pair) -> None:
    only: dict[str, Any] = {"suppress_ids": [id_ for id_ in range(300) if id_ != 65], "max_new_tokens": 3}
    assert runtime.complete("Hello", model=tiny.model, num_beams=3, **only)[0].ids == [65, 65, 65]
    with pytest.raises(ValueError, match="leave 1 continuations of prompt 0; n is 2"):
        runtime.complete("Hello", model=tiny.model, num_beams=3, n=2, **only)


def test_importing_the_package_leaves_the_search_out() -> None:
    program = "import runtime, sys; sys.exit('runtime.beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def fill(cache: Cache, rows: Sequence[Sequence[int]]) -> None:
    for row, ids in enumerate(rows):
        cache.clear_row(row)
        cache.extend(ids, row=row)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 0], [1, 2, 0], [1, 0], [2], [1, 1, 1]])
def test_reorder_moves_rows(tiny: Pair, order: list[int]) -> None:
    rows, next_ids = [[1, 2, 3, 4, 5], [9], [7, 8, 9]], [11, 12, 13]
    moved, expected = tiny.model.new_cache(10, rows=3), tiny.model.new_cache(10, rows=3)
    fill(moved, rows)
    moved.reorder(order)
    after = [rows[source] for source in order] + rows[len(order) :]
    fill(expected, after)
    assert moved.lengths == expected.lengths == [len(ids) for ids in after]
    for _ in range(2):
        np.testing.assert_array_equal(moved.step(next_ids), expected.step(next_ids))


def test_reorder_leaves_equal_beginnings_alone(tiny: Pair) -> None:
    rows = [[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 5, 7]]
    cache, expected = (tiny.model.new_cache(8, rows=3) for _ in range(2))
    fill(cache, rows)
    fill(expected, [rows[2], rows[0], rows[0]])
    cache.reorder([2, 0, 0], begin=2)
    np.testing.assert_array_equal(cache.step([1, 2, 3]), expected.step([1, 2, 3]))


def test_a_cache_of_one_row_has_nothing_to_reorder(tiny: Pair) -> None:
    cache = GrowingCache(tiny.model.session, tiny.model.config)
    cache.reorder([0])
    with pytest.raises(ValueError, match="one row at a time"):
        cache.reorder([0, 0])
