"""P(continuation | context) and perplexity, against transformers and lm-evaluation-harness's protocol."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import runtime
from runtime.model.model import Model
from runtime.scoring.scoring import Pair, encode_pair, fit_pair, score_ids, score_pairs
from tests.conftest import DEMO, shared_data
from tests.support import oracle
from tests.support.checkpoints import some_ids
from tests.support.vocabularies import model_of

STORY = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
CLOSE = 1e-4
PAIRS = [
    ("Once upon a time", " there was a king who had three daughters."),
    ("Once upon a time ", "there was a king"),  # the space goes to the continuation
    ("The end.\n\n  ", "Chapter"),
    ("", "The fox"),
    ("   ", "The fox"),
    ("The fo", "x ran"),  # cut inside a word
    ("¿Dónde está el niño?", " Ñandú, 😀 said the mouse"),
    ("a", " b"),
]


@pytest.mark.parametrize(("context", "continuation"), PAIRS)
def test_score_is_the_harness(demo_fp32: Model, context: str, continuation: str) -> None:
    score = runtime.score(continuation, context=context, model=demo_fp32)
    ids, logprobs, is_greedy = oracle.harness(context, continuation)
    assert score.ids == ids
    assert np.abs(np.array(score.logprobs) - logprobs).max() < CLOSE
    assert score.is_greedy == is_greedy == all(score.greedy)
    assert score.logprob == pytest.approx(float(logprobs.sum()), abs=CLOSE * len(ids))
    assert score.perplexity == pytest.approx(math.exp(-logprobs.mean()), rel=CLOSE)


def test_greedy_continuation_is_greedy(demo_fp32: Model) -> None:
    prompt = "The old king said to"
    continuation = runtime.generate(prompt, model=demo_fp32, max_new_tokens=5)
    score = runtime.score(continuation, context=prompt, model=demo_fp32)
    assert score.is_greedy
    assert score.greedy == [True] * 5


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_reference"])
def test_several_are_scored_as_each_alone(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    context = STORY[:1200]  # longer than one pass of the prefill
    texts = [" and then", " he went home to his mother and to his brothers, who", " and then", "."]
    scores = runtime.score(texts, context=context, model=model)
    assert scores == [runtime.score(text, context=context, model=model) for text in texts]
    assert scores == runtime.score(tuple(texts), context=context, model=model)


@settings(max_examples=10, deadline=None)
@given(context=st.text(max_size=20), texts=st.lists(st.text("ab é\n", min_size=1, max_size=9), min_size=1, max_size=3))
def test_any_texts_score_alone_as_together(demo_int8: Model, context: str, texts: list[str]) -> None:
    try:
        alone = [runtime.score(text, context=context, model=demo_int8) for text in texts]
    except ValueError as error:
        assert "part of the context's last token" in str(error)
        return
    assert runtime.score(texts, context=context, model=demo_int8) == alone
    assert all(score.logprob <= 0 and len(score.ids) == len(score.logprobs) for score in alone)


def test_probabilities_chain(demo_fp32: Model) -> None:
    """P(a b | c) = P(a | c) P(b | c a)."""
    both = runtime.score(" there was a king", context="Once upon a time", model=demo_fp32)
    first = runtime.score(" there was", context="Once upon a time", model=demo_fp32)
    second = runtime.score(" a king", context="Once upon a time there was", model=demo_fp32)
    assert both.logprob == pytest.approx(first.logprob + second.logprob, abs=CLOSE)


def test_next_tokens_are_a_distribution(demo_fp32: Model) -> None:
    """The probabilities of all tokens after a context sum to 1."""
    pairs = [Pair(some_ids(5, 8192), [id_]) for id_ in range(8192)]
    total = sum(math.exp(score.logprob) for score in score_pairs(demo_fp32, pairs))
    assert total == pytest.approx(1, abs=1e-3)


def test_special_token_in_a_text_is_text(demo_fp32: Model) -> None:
    assert demo_fp32.config.bos_token_id not in runtime.score("<|endoftext|>", context="The end.", model=demo_fp32).ids


def _sized(model: Model, n: int) -> str:
    """A text of n tokens that are n after another text too."""
    text = " a" * n
    assert len(model.tokenizer.encode(text).ids) == n
    return text


def test_exactly_the_limit_and_one_over(demo_fp32: Model) -> None:
    size = demo_fp32.config.n_positions
    context = _sized(demo_fp32, size - 2)
    fitting = runtime.score(_sized(demo_fp32, 3), context=context, model=demo_fp32)
    logprobs, _ = oracle.score(oracle.demo(), demo_fp32.tokenizer.encode(context).ids, fitting.ids)
    assert np.abs(np.array(fitting.logprobs) - logprobs).max() < CLOSE
    assert fitting.n_truncated == 0
    with pytest.raises(ValueError, match=rf"{size - 2} tokens .* 4 are 1 more than the {size + 1} .*truncate_left"):
        runtime.score(_sized(demo_fp32, 4), context=context, model=demo_fp32)


def test_a_long_context_is_cut_at_its_left(demo_fp32: Model) -> None:
    context, text = STORY[:2600], " and he said to the fox"
    n_context = len(oracle.demo_tokenizer().encode(context))
    score, longer = runtime.score([text, text + " that"], context=context, model=demo_fp32, overflow="truncate_left")
    ids, logprobs, _ = oracle.harness(context, text)
    assert score.n_truncated == n_context + len(ids) - demo_fp32.config.n_positions - 1
    assert longer.n_truncated == score.n_truncated + 1
    assert np.abs(np.array(score.logprobs) - logprobs).max() < CLOSE
    assert longer == runtime.score(text + " that", context=context, model=demo_fp32, overflow="truncate_left")


def test_a_continuation_alone_fills_the_model(demo_fp32: Model) -> None:
    size = demo_fp32.config.n_positions
    assert len(runtime.score(_sized(demo_fp32, size), model=demo_fp32).ids) == size
    for overflow in ("error", "truncate_left"):
        with pytest.raises(ValueError, match=f"continuation of {size + 1} tokens .* {size} positions; score_text"):
            runtime.score(_sized(demo_fp32, size + 1), model=demo_fp32, overflow=overflow)


@settings(max_examples=50, deadline=None)
@given(n_context=st.integers(1, 30), n=st.integers(1, 10), size=st.integers(10, 20))
def test_a_cut_pair_is_as_long_as_fits(n_context: int, n: int, size: int) -> None:
    pair = Pair(list(range(n_context)), list(range(100, 100 + n)))
    cut = fit_pair(pair, size, "truncate_left")
    assert cut.length == min(pair.length, size + 1)
    assert cut.ids == pair.ids
    assert cut.context_ids == pair.context_ids[cut.n_truncated :]
    assert cut.context_ids


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"continuation": ""}, ValueError, "continuation is empty"),
        ({"continuation": ["a", ""]}, ValueError, "continuation is empty"),
        ({"continuation": []}, ValueError, "is empty"),
        ({"continuation": 5}, TypeError, "a text "),
        ({"continuation": b"a"}, TypeError, "a text "),
        ({"continuation": ["a", None]}, TypeError, "a text "),
        ({"continuation": "a", "context": None}, TypeError, "context is None; a text "),
        ({"continuation": "\ud800"}, ValueError, "lone surrogate"),
        ({"continuation": "a", "overflow": "slide"}, ValueError, "'slide'; error or truncate_left"),
        ({"continuation": "e", "context": " th"}, ValueError, "part of the context's last token"),
        ({"continuation": "a", "model": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_wrong_arguments(demo_fp32: Model, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        runtime.score(**{"model": demo_fp32} | arguments)


def test_score_text_takes_several(demo_fp32: Model) -> None:
    texts = [STORY[:300], "A fox ran."]
    assert runtime.score_text(texts, model=demo_fp32) == [runtime.score_text(t, model=demo_fp32) for t in texts]
    ids = oracle.demo_tokenizer().encode(texts[1])
    expected, _ = oracle.score(oracle.demo(), ids[:1], ids[1:])
    assert np.abs(np.array(runtime.score_text(texts[1], model=demo_fp32).logprobs) - expected).max() < CLOSE


@pytest.mark.parametrize(
    ("text", "stride", "error", "message"),
    [
        ("", None, ValueError, "0 token"),
        ("a", None, ValueError, "1 token"),
        ("a fox", 0, ValueError, "stride is 0"),
        ("a fox", 513, ValueError, "stride is 513"),
        ("a fox", 1.5, TypeError, "stride is 1.5"),
        ([], None, ValueError, "is empty"),
        (None, None, TypeError, "a text "),
    ],
)
def test_wrong_texts(demo_fp32: Model, text: Any, stride: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        runtime.score_text(text, model=demo_fp32, stride=stride)


def test_ids_split_as_recorded_of_the_harness() -> None:
    """What lm-evaluation-harness's own tests record of GPT-2's tokenizer."""
    tokenizer = Tokenizer.from_file(str(shared_data("tokenizer") / "tokenizer.json"))
    model = model_of(tokenizer)
    for case in oracle.recorded("lmeval_loglikelihood")["cases"]:
        pair = encode_pair(model, case["context"], case["continuation"])
        assert (pair.context_ids, pair.ids) == (case["context_ids"], case["continuation_ids"])


def test_gpt2_scores_as_recorded_of_the_harness() -> None:
    entry = oracle.recorded("lmeval_loglikelihood")
    with Model(oracle.real_gpt2()) as gpt2:
        for case in entry["cases"]:
            score = runtime.score(case["continuation"], context=case["context"], model=gpt2)
            assert score.logprob == pytest.approx(case["sum_logprob"], rel=1e-3)
        prompt, dog, cat = entry["order_checks"]["logprob_dog_gt_cat"]
        likely, unlikely = runtime.score([dog, cat], context=prompt, model=gpt2)
        assert likely.logprob > unlikely.logprob
        for text, is_greedy in entry["order_checks"]["is_greedy"].items():
            assert runtime.score(text, context=prompt, model=gpt2).is_greedy == is_greedy


def test_score_ids_needs_two(demo_fp32: Model) -> None:
    assert len(score_ids(demo_fp32, [1, 2]).ids) == 1
    with pytest.raises(ValueError, match="two are needed"):
        score_ids(demo_fp32, [1])
