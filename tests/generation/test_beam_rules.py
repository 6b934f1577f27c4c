"""Beam search where the runtime's own rules hold: the context's end, log-probabilities, cancelling, what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime._math import log_softmax
from runtime.model.dynamic_kv_cache import GrowingCache
from runtime.model.kv_cache import Cache, InPlaceCache
from runtime.model.model import Model
from runtime.tokenization.encode import encode_prompt
from tests.support.checkpoints import build_model
from tests.support.searching import END, Pair
from tests.support.searching import tiny as tiny
from tests.support.searching import tiny_folder as tiny_folder


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


def test_continuations_that_do_not_exist_are_said_to_be_none(tiny: Pair) -> None:
    """There are `n`, as in transformers, which repeats the only one there, with a score of minus a billion or so."""
    only: dict[str, Any] = {"suppress_ids": [id_ for id_ in range(300) if id_ != 65], "max_new_tokens": 3}
    found = runtime.complete(["Hello", "x"], model=tiny.model, num_beams=3, n=2, **only)
    assert [(one.prompt_index, one.sample_index) for one in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for real, none in (found[:2], found[2:]):
        assert (real.ids, real.finish_reason) == ([65, 65, 65], "length")
        assert (none.ids, none.text, none.finish_reason, none.beam_score) == ([], "", "no_token", None)


def test_beams_without_a_token_to_go_on_with_follow_those_that_finished(tiny: Pair) -> None:
    """Three ids, each once: a beam ends with BA, or has none left."""
    kept = encode_prompt(tiny.model, "ABC")
    options: dict[str, Any] = {
        "suppress_ids": [id_ for id_ in range(300) if id_ not in kept],
        "no_repeat_ngram_size": 1,
        "max_new_tokens": 20,
        "logprobs": 1,
        "stop": "BA",
    }
    found = runtime.complete("Hello", model=tiny.model, num_beams=8, n=8, **options)
    assert [one.finish_reason for one in found] == ["stop"] * 2 + ["no_token"] * 6
    written = [tiny.model.tokenizer.decode(one.ids) for one in found]
    assert set(written[:2]) == {"BA", "CBA"}
    assert set(written[2:6]) == {"ABC", "ACB", "BCA", "CAB"}
    assert written[6:] == ["", ""]
    assert [one.text for one in found[2:]] == written[2:]
    assert [len(one.logprobs) == len(one.top_logprobs) == len(one.ids) for one in found] == [True] * 8
    scores = [one.beam_score or 0.0 for one in found[2:6]]
    assert scores == sorted(scores, reverse=True)


def test_a_prompt_of_which_nothing_can_be_written_is_no_ones_error(tiny: Pair) -> None:
    every = {"suppress_ids": range(300), "max_new_tokens": 3}
    found = runtime.complete(["Hello", "x"], model=tiny.model, num_beams=3, n=2, **every)
    assert {(one.text, one.finish_reason) for one in found} == {("", "no_token")}
    assert len(found) == 4


def test_logits_that_are_not_numbers_are_named(tiny: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    extend = InPlaceCache.extend
    monkeypatch.setattr(InPlaceCache, "extend", lambda *given, **named: extend(*given, **named) * np.float32("nan"))
    with pytest.raises(ValueError, match="logits are not numbers"):
        runtime.complete("Hello", model=tiny.model, num_beams=3)


def test_importing_the_package_leaves_the_search_out() -> None:
    program = "import runtime, sys; sys.exit('runtime.generation.beam_search' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# rows of a cache change places -------------------------------------------------------------------------------------


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
