"""Log-probabilities of texts, beside transformers' in fp32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from runtime import Score, complete, score_text
from runtime.model.model import Model
from runtime.tokenization.encode import encode
from tests.conftest import DEMO

N_POSITIONS = 512
EVALUATION = (DEMO / "evaluation.txt").read_text(encoding="utf-8")


def text_of(model: Model, n_tokens: int) -> str:
    """A text of exactly so many tokens."""
    ids = encode(model, EVALUATION)
    candidates = (model.tokenizer.decode(ids[begin : begin + n_tokens]) for begin in range(len(ids)))
    return next(candidate for candidate in candidates if len(encode(model, candidate)) == n_tokens)


def torch_logprobs(model: GPT2LMHeadModel, ids: list[int], stride: int) -> tuple[list[float], bool]:
    """Each id's log-probability in the first window that predicts it, and whether each was the likeliest."""
    found: dict[int, float] = {}
    greedy = True
    for begin in range(0, len(ids), stride):
        window = ids[begin : begin + N_POSITIONS]
        with torch.inference_mode():
            logprobs = model(torch.tensor([window])).logits[0].log_softmax(-1)
        for at, row in enumerate(logprobs, start=begin + 1):
            if at < len(ids) and at not in found:
                found[at] = float(row[ids[at]])
                greedy = greedy and int(row.argmax()) == ids[at]
        if len(found) == len(ids) - 1:
            break
    assert list(found) == list(range(1, len(ids)))
    return list(found.values()), greedy


@pytest.mark.parametrize(
    ("n_tokens", "stride"),
    [
        (2, None),
        (100, None),
        (N_POSITIONS, None),
        (N_POSITIONS + 1, None),
        (N_POSITIONS + 2, None),
        (2 * N_POSITIONS + 1, None),
        (1300, None),
        (100, 1),
        (N_POSITIONS + 1, 1),
        (N_POSITIONS + 4, 1),
        (700, 100),
        (1300, 256),
        (1300, 511),
        (1300, N_POSITIONS),
    ],
)
def test_log_probabilities_are_those_of_transformers(
    demo_fp32: Model, torch_demo: GPT2LMHeadModel, n_tokens: int, stride: int | None
) -> None:
    text = text_of(demo_fp32, n_tokens)
    score = score_text(text, model=demo_fp32, stride=stride)
    expected, greedy = torch_logprobs(torch_demo, encode(demo_fp32, text), stride or N_POSITIONS)
    assert score.ids == encode(demo_fp32, text)[1:]
    np.testing.assert_allclose(score.logprobs, expected, atol=1e-4)
    assert score.is_greedy == greedy
    assert math.isclose(score.perplexity, math.exp(-sum(expected) / len(expected)), rel_tol=1e-4)


def test_the_sums_of_a_score() -> None:
    score = Score([5, 6], [-1.0, -3.0], is_greedy=False)
    assert (score.logprob, score.perplexity) == (-4.0, math.exp(2))


def test_a_very_unlikely_text_has_an_infinite_perplexity() -> None:
    assert Score([5], [-1000.0], is_greedy=False).perplexity == math.inf


def test_a_smaller_stride_gives_more_context(demo_fp32: Model) -> None:
    text = text_of(demo_fp32, 1300)
    assert score_text(text, model=demo_fp32, stride=128).perplexity < score_text(text, model=demo_fp32).perplexity


def greedy_text(model: Model) -> str:
    """A token and its greedy continuation, chosen so that the text has these ids again."""
    for prompt in ("The", "Once", "He", "It", "And"):
        [written] = complete(prompt, model=model, max_new_tokens=20)
        if encode(model, prompt + written.text) == [*encode(model, prompt), *written.ids]:
            return prompt + written.text
    raise AssertionError("no prompt serves")


def test_a_greedy_continuation_is_greedy(demo_fp32: Model) -> None:
    text = greedy_text(demo_fp32)
    assert score_text(text, model=demo_fp32).is_greedy
    assert not score_text(text + " zebra", model=demo_fp32).is_greedy
    assert not score_text("zebra" + text, model=demo_fp32).is_greedy


@pytest.mark.parametrize("text", ["", "a", " the"])
def test_two_tokens_are_needed(demo_fp32: Model, text: str) -> None:
    n = len(encode(demo_fp32, text))
    with pytest.raises(ValueError, match=rf"{n} token.*two"):
        score_text(text, model=demo_fp32)


@pytest.mark.parametrize("stride", [0, -1, N_POSITIONS + 1])
def test_a_stride_out_of_range_is_refused_with_the_range(demo_fp32: Model, stride: int) -> None:
    with pytest.raises(ValueError, match=rf"stride is {stride}.*1.*{N_POSITIONS}"):
        score_text("Once upon a time", model=demo_fp32, stride=stride)


@pytest.mark.parametrize("stride", [1.5, 2.0, "4", True, [1]], ids=repr)
def test_a_stride_is_a_whole_number(demo_fp32: Model, stride: Any) -> None:
    with pytest.raises(TypeError, match="stride"):
        score_text("Once upon a time", model=demo_fp32, stride=stride)


def test_a_stride_may_be_numpys(demo_fp32: Model) -> None:
    text = text_of(demo_fp32, 600)
    assert score_text(text, model=demo_fp32, stride=np.int64(300)) == score_text(text, model=demo_fp32, stride=300)


def test_a_special_token_in_a_text_is_text(demo_fp32: Model) -> None:
    assert demo_fp32.config.bos_token_id not in score_text("a <|endoftext|> b", model=demo_fp32).ids


def test_int8_is_near_fp32(demo_int8: Model, demo_fp32: Model) -> None:
    text = text_of(demo_fp32, 300)
    int8, fp32 = score_text(text, model=demo_int8), score_text(text, model=demo_fp32)
    assert abs(int8.perplexity / fp32.perplexity - 1) < 0.01
    assert int8.logprobs != fp32.logprobs
