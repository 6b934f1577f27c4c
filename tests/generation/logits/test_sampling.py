"""From logits to a token, beside transformers' logits warpers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import LogitsProcessorList
from transformers.generation import logits_process as warpers

from runtime import generate
from runtime._math import softmax
from runtime.generation.logits import sampling
from runtime.generation.logits.sampling import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical_p,
    make_sampler,
    uniform,
)
from runtime.model.model import Model
from runtime.options import Options

calm = settings(deadline=None)  # time is not what these test
Scores = NDArray[np.float64]
APART = st.lists(st.floats(-20, 20), min_size=1, max_size=50, unique=True).map(np.array)
TIED = st.lists(st.sampled_from([-math.inf, -1.5, 0.0, 0.5, 2.0]), min_size=1, max_size=50).map(np.array)
SHARE = st.floats(0.01, 0.99)


def warp(warper: Any, scores: Scores) -> Scores:
    """What transformers makes of the scores."""
    return np.asarray(warper(None, torch.tensor(scores)[None])[0].numpy())


def is_clear(scores: Scores, p: float) -> bool:
    """Whether no sum of the likeliest tokens is p but for rounding."""
    return bool(np.abs(np.cumsum(np.sort(softmax(scores))[::-1]) - p).min() > 1e-9)


@calm
@given(scores=APART | TIED, k=st.integers(1, 60))
def test_top_k_is_that_of_transformers(scores: Scores, k: int) -> None:
    assume(scores.max() > -math.inf)
    np.testing.assert_array_equal(keep_top_k(scores, k), warp(warpers.TopKLogitsWarper(k), scores))


@pytest.mark.parametrize("spread", [0.1, 2.0, 5.0])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary_is_that_of_transformers(spread: float, p: float) -> None:
    scores = np.random.default_rng(7).standard_normal(5000) * spread
    np.testing.assert_array_equal(keep_top_p(scores, p), warp(warpers.TopPLogitsWarper(p), scores))


def test_top_p_keeps_the_first_of_equals_in_a_large_vocabulary() -> None:
    kept = np.flatnonzero(keep_top_p(np.zeros(5000), 0.1) > -math.inf)
    assert kept.tolist() == list(range(500))


@calm
@given(scores=APART, p=SHARE)
def test_top_p_is_that_of_transformers(scores: Scores, p: float) -> None:
    assume(is_clear(scores, p))
    np.testing.assert_array_equal(keep_top_p(scores, p), warp(warpers.TopPLogitsWarper(p), scores))


@calm
@given(scores=TIED, p=SHARE)
def test_top_p_keeps_as_many_tied_tokens_as_transformers(scores: Scores, p: float) -> None:
    assume(scores.max() > -math.inf and is_clear(scores, p))
    kept = keep_top_p(scores, p)
    np.testing.assert_array_equal(np.sort(kept), np.sort(warp(warpers.TopPLogitsWarper(p), scores)))
    assert ((kept == scores) | (kept == -math.inf)).all()


@calm
@given(scores=APART, p=SHARE)
def test_min_p_is_that_of_transformers(scores: Scores, p: float) -> None:
    shares = softmax(scores) / softmax(scores).max()
    assume(np.abs(shares - p).min() > 1e-9)
    np.testing.assert_array_equal(keep_min_p(scores, p), warp(warpers.MinPLogitsWarper(p), scores))


@calm
@given(scores=APART, p=SHARE)
def test_typical_p_is_that_of_transformers(scores: Scores, p: float) -> None:
    surprise = -np.log(softmax(scores))
    distance = np.sort(np.abs(surprise - (softmax(scores) * surprise).sum()))
    order = np.argsort(np.abs(surprise - (softmax(scores) * surprise).sum()))
    assume(len(scores) == 1 or np.diff(distance).min() > 1e-9)  # else rounding orders them
    assume(np.abs(np.cumsum(softmax(scores)[order]) - p).min() > 1e-9)
    np.testing.assert_array_equal(keep_typical_p(scores, p), warp(warpers.TypicalLogitsWarper(p), scores))


@pytest.mark.parametrize("keep", [keep_top_k, keep_min_p])
def test_a_filter_is_off_at_0(keep: Any) -> None:
    scores = np.array([1.0, -5.0, 3.0, -math.inf])
    np.testing.assert_array_equal(keep(scores, 0), scores)


@pytest.mark.parametrize("keep", [keep_top_p, keep_typical_p])
def test_a_filter_is_off_at_1(keep: Any) -> None:
    scores = np.array([1.0, -500.0, 3.0, -math.inf])
    np.testing.assert_array_equal(keep(scores, 1.0), scores)


@pytest.mark.parametrize("keep", [keep_top_p, keep_typical_p])
def test_a_tiny_share_keeps_one_token(keep: Any) -> None:
    assert np.isfinite(keep(np.array([1.0, 2.0, 3.0, -math.inf]), 1e-300)).sum() == 1


def test_typical_p_takes_a_probability_that_is_too_small_for_a_number() -> None:
    assert np.isfinite(keep_typical_p(np.array([0.0, -1.0, -800.0, -math.inf]), 0.5)).tolist() == [True] + 3 * [False]


# the order of the filters ------------------------------------------------------------------------------------------


def choose(monkeypatch: pytest.MonkeyPatch, logits: NDArray[np.float32], u: float, **options: Any) -> int:
    """The token that the sampler chooses where the draw is u."""
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "uniform", lambda *_args: u)
        return make_sampler(Options(**options), 0)(logits, 0)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.5, 12, 1.0), (0.8, 0, 0.9), (1.3, 20, 0.8), (2.0, 8, 0.7)]
)
def test_temperature_then_top_k_then_top_p(
    monkeypatch: pytest.MonkeyPatch, temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(0).normal(0, 2, 60).astype(np.float32)
    chain = LogitsProcessorList([warpers.TemperatureLogitsWarper(temperature)])
    chain += [warpers.TopKLogitsWarper(top_k)] if top_k else []
    chain += [warpers.TopPLogitsWarper(top_p)]
    probabilities = softmax(warp(chain, logits.astype(np.float64)))
    us = [(i + 0.5) / 300 for i in range(300)]
    expected = [draw(probabilities, u) for u in us]
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    assert [choose(monkeypatch, logits, u, **options) for u in us] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
def test_a_tiny_temperature_is_greedy(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    logits = np.array([1.0, 4.0, 3.5, -2e4], np.float32)
    assert {choose(monkeypatch, logits, u, temperature=temperature) for u in (0.0, 0.5, 0.999)} == {1}


def test_a_huge_temperature_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.array([1.0, 4.0, 3.5, -2e4], np.float32)
    got = [choose(monkeypatch, logits, u, temperature=1.7e308) for u in (0.1, 0.3, 0.6, 0.9)]
    assert got == [0, 1, 2, 3]


def test_greedy_is_the_first_of_the_likeliest() -> None:
    assert make_sampler(Options(), 0)(np.array([1, 5, 5, 2], np.float32), 0) == 1


@pytest.mark.parametrize("temperature", [0.1, 1.0, 50.0])
def test_top_k_of_1_is_greedy(demo_fp32: Model, temperature: float) -> None:
    greedy = generate("The old king", model=demo_fp32, max_new_tokens=30)
    assert generate("The old king", model=demo_fp32, max_new_tokens=30, temperature=temperature, top_k=1) == greedy


# the draw ----------------------------------------------------------------------------------------------------------


def test_draws_are_as_frequent_as_their_probabilities() -> None:
    probabilities = np.array([0.02, 0.0, 0.5, 0.18, 0.05, 0.25])
    n = 5000
    counts = np.bincount([draw(probabilities, uniform(7, step)) for step in range(n)], minlength=6)
    likely = probabilities > 0
    chi_square = ((counts[likely] - n * probabilities[likely]) ** 2 / (n * probabilities[likely])).sum()
    assert counts[1] == 0
    assert chi_square < 18.47  # 4 degrees of freedom: once in a thousand seeds


@calm
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-300, 1e-17, 0.1, 1.0]), min_size=1, max_size=30),
    u=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 1 - 2.0**-53]),
)
def test_a_token_of_probability_0_is_never_drawn(weights: list[float], u: float) -> None:
    assume(any(weights))
    probabilities = np.array(weights) / sum(weights)
    assume(probabilities.max() > 0)
    assert probabilities[draw(probabilities, u)] > 0


def test_the_ends_of_the_unit_interval_are_the_first_and_last_possible_tokens() -> None:
    probabilities = np.array([0.0, 0.3, 0.7, 0.0])
    assert draw(probabilities, 0.0) == 1
    assert draw(probabilities, math.nextafter(0.3, 0)) == 1
    assert draw(probabilities, 0.3) == 2
    assert draw(probabilities, 1 - 2.0**-53) == 2


GOLDEN = {  # seed, step, sample
    (0, 0): 0.011546754286331562,
    (0, 1): 0.34218278474233466,
    (1, 0): 0.3035680343067586,
    (7, 63): 0.40657442758164186,
    (123, 1023): 0.16559605583392323,
    (2**64 - 1, 0): 0.23494158814525556,
    (0, 0, 1): 0.6436367332217984,
    (7, 3, 2): 0.5136301284114382,
}


@pytest.mark.parametrize(("where", "expected"), GOLDEN.items(), ids=repr)
def test_the_draws_of_a_seed_are_the_same_everywhere(where: tuple[int, ...], expected: float) -> None:
    assert uniform(*where) == expected


def test_the_draws_of_a_seed_spread_over_the_unit_interval() -> None:
    draws = np.array([uniform(1, step) for step in range(1000)])
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    assert len(set(draws)) == 1000
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.1


# seeds --------------------------------------------------------------------------------------------------------------


def sampled(model: Model, **options: Any) -> str:
    return generate("The old king", model=model, max_new_tokens=30, **{"temperature": 1.0} | options)


def test_a_seed_is_a_text(demo_fp32: Model) -> None:
    texts = [sampled(demo_fp32, seed=seed) for seed in (0, 1, 2**64 - 1)]
    assert texts == [sampled(demo_fp32, seed=seed) for seed in (0, 1, 2**64 - 1)]
    assert len(set(texts)) == 3


def test_without_a_seed_every_text_is_another(demo_fp32: Model) -> None:
    assert len({sampled(demo_fp32) for _ in range(3)}) == 3


@pytest.mark.parametrize("filtered", [{"top_k": 5}, {"top_p": 0.3}, {"min_p": 0.5}, {"typical_p": 0.2}], ids=repr)
def test_filters_reach_the_sampler(demo_fp32: Model, filtered: dict[str, Any]) -> None:
    assert sampled(demo_fp32, temperature=3.0, seed=1, **filtered) != sampled(demo_fp32, temperature=3.0, seed=1)
