"""P(continuation | context) and perplexity, against transformers and lm-evaluation-harness's protocol."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

import runtime
from runtime.model import Model
from runtime.perplexity import measure_rolling, measure_strided, rolling_windows
from runtime.scoring import Pair, encode_pair, fit_pair, score_ids, score_pairs
from runtime.wikitext import detokenize, join_lines, split_pages
from tests import oracle
from tests.checkpoints import TINY, build_model, open_checkpoint, some_ids, write_checkpoint
from tests.conftest import DEMO, shared_data

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
        ({"continuation": []}, ValueError, "no texts"),
        ({"continuation": 5}, TypeError, "a text or several"),
        ({"continuation": b"a"}, TypeError, "a text or several"),
        ({"continuation": ["a", None]}, TypeError, "a text or several"),
        ({"continuation": "a", "context": None}, TypeError, "a text is a str, not NoneType"),
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
        ([], None, ValueError, "no texts"),
        (None, None, TypeError, "a text or several"),
    ],
)
def test_wrong_texts(demo_fp32: Model, text: Any, stride: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        runtime.score_text(text, model=demo_fp32, stride=stride)


def test_ids_split_as_recorded_of_the_harness() -> None:
    """What lm-evaluation-harness's own tests record of GPT-2's tokenizer."""
    tokenizer = Tokenizer.from_file(str(shared_data("tokenizer") / "tokenizer.json"))
    recorded = json.loads((shared_data("reference_outputs") / "gpt2_reference.json").read_text(encoding="utf-8"))
    model: Any = SimpleNamespace(tokenizer=tokenizer)
    (entry,) = (entry for entry in recorded if entry["id"] == "lmeval_loglikelihood")
    for case in entry["cases"]:
        pair = encode_pair(model, case["context"], case["continuation"])
        assert (pair.context_ids, pair.ids) == (case["context_ids"], case["continuation_ids"])


# perplexity


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, GPT2LMHeadModel]:
    folder = tmp_path_factory.mktemp("score") / "tiny"
    write_checkpoint(folder)
    return Model(build_model(folder), threads=1), open_checkpoint(folder)


def _documented_perplexity(model: GPT2LMHeadModel, ids: list[int], stride: int) -> float:
    """The loop of transformers' documentation, "Perplexity of fixed-length models"."""
    total, n_tokens, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + model.config.n_positions, len(ids))
        inputs = torch.tensor([ids[begin:end]])
        labels = inputs.clone()
        labels[:, : -(end - previous)] = -100
        with torch.no_grad():
            loss = model(inputs, labels=labels).loss
        n_loss = int((labels != -100).sum()) - 1
        total += float(loss) * n_loss if n_loss else 0.0  # one token without context: its loss is nan
        n_tokens += n_loss
        previous = end
        if end == len(ids):
            break
    return math.exp(total / n_tokens)


@pytest.mark.parametrize("stride", [96, 48, 7])
@pytest.mark.parametrize("n", [2, 95, 96, 97, 98, 300])
def test_strided_perplexity_is_the_documented_recipe(tiny: tuple[Model, GPT2LMHeadModel], n: int, stride: int) -> None:
    model, expected = tiny
    text = STORY.encode("ascii", "ignore").decode()[:n]
    ids = model.tokenizer.encode(text).ids
    assert len(ids) == n
    perplexity = _documented_perplexity(expected, ids, stride)
    assert measure_strided(model, text, stride) == pytest.approx(perplexity, rel=CLOSE)


def test_strided_perplexity_of_the_demo(demo_fp32: Model) -> None:
    text = STORY[:2400]
    ids = oracle.demo_tokenizer().encode(text)
    for stride in (512, 256):
        expected = _documented_perplexity(oracle.demo(), ids, stride)
        assert measure_strided(demo_fp32, text, stride) == pytest.approx(expected, rel=CLOSE)


def test_rolling_windows_are_the_harness() -> None:
    """17 tokens in windows of 5: disjoint, one token of context each, the last one full."""
    ids = ["bos", *range(17)]
    windows = [(ids[begin:end], ids[begin + 1 + skip : end + 1]) for begin, skip, end in rolling_windows(17, 5)]
    assert windows == [
        (["bos", 0, 1, 2, 3], [0, 1, 2, 3, 4]),
        ([4, 5, 6, 7, 8], [5, 6, 7, 8, 9]),
        ([9, 10, 11, 12, 13], [10, 11, 12, 13, 14]),
        ([11, 12, 13, 14, 15], [15, 16]),
    ]


@settings(max_examples=100, deadline=None)
@given(n=st.integers(0, 60), size=st.integers(1, 20))
def test_rolling_windows_predict_every_token_once(n: int, size: int) -> None:
    windows = list(rolling_windows(n, size))
    assert [at for begin, skip, end in windows for at in range(begin + skip, end)] == list(range(n))
    assert all(end - begin == min(size, end) for begin, _, end in windows)


@pytest.mark.parametrize("n", [1, 95, 96, 97, 193])
def test_rolling_loglikelihood_is_transformers(tiny: tuple[Model, GPT2LMHeadModel], n: int) -> None:
    model, expected = tiny
    texts = [STORY.encode("ascii", "ignore").decode()[:n], "", "  two words "]
    total = 0.0
    for text in texts:
        ids = [TINY["bos_token_id"], *model.tokenizer.encode(text).ids]
        done = 0
        while done < len(ids) - 1:  # windows of 96 predictions, the last one reaching back
            end = min(done + 96, len(ids) - 1)
            rows = oracle.logprobs(expected, ids[max(0, end - 96) : end])[done - end :]
            total += float(rows[np.arange(end - done), ids[done + 1 : end + 1]].sum())
            done = end
    rolling = measure_rolling(model, texts)
    assert rolling.logprob == pytest.approx(total, rel=CLOSE)
    n_words = len(texts[0].split()) + texts[0].endswith(" ") + 1 + 4  # white space at the ends counts an empty word
    assert (rolling.n_tokens, rolling.n_bytes) == (n + 12, n + 12)
    assert rolling.n_words == n_words
    assert rolling.word_perplexity == pytest.approx(math.exp(-total / n_words), rel=1e-3)
    assert rolling.byte_perplexity == pytest.approx(2**rolling.bits_per_byte)
    assert rolling.token_perplexity == rolling.byte_perplexity  # a token is a byte here


def test_rolling_agrees_with_score(demo_fp32: Model) -> None:
    text = STORY[:1200]
    rolling, score = measure_rolling(demo_fp32, [text]), runtime.score(text, model=demo_fp32)
    assert rolling.logprob == pytest.approx(score.logprob, abs=0.01)


def test_progress_reaches_its_end(tiny: tuple[Model, GPT2LMHeadModel]) -> None:
    seen: list[tuple[int, int]] = []
    measure_strided(tiny[0], "x" * 200, 96, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(96, 200), (192, 200), (200, 200)]
    seen.clear()
    measure_rolling(tiny[0], ["x" * 100, "y"], progress=lambda done, n: seen.append((done, n)))
    assert seen == [(96, 101), (100, 101), (101, 101)]


def test_nothing_to_measure(tiny: tuple[Model, GPT2LMHeadModel]) -> None:
    with pytest.raises(ValueError, match="no text"):
        measure_rolling(tiny[0], [""])
    with pytest.raises(ValueError, match="1 token"):
        measure_strided(tiny[0], "x")
    with pytest.raises(ValueError, match="stride is 97"):
        measure_strided(tiny[0], "xyz", 97)


def test_wikitext_is_split_at_titles() -> None:
    first, second = " \n = Fox = \n \n A fox . \n = = Life = = \n x \n", " = Hare = \n \n y = z \n"
    assert split_pages(first + second) == [" = Fox = \n \n A fox . \n = = Life = = \n x ", second]
    assert split_pages("no title") == ["no title"]
    assert join_lines(" = Fox = \n \n A fox . \n") == " = Fox = \n\n\n\n\n A fox . \n"


def test_wikitext_is_detokenized() -> None:
    page = (
        ' = = Life = = \n The fox \'s 1 @,@ 000 @-@ year " den " ( or hole ) ; it ran , hid . N miles at 5 @.@ 2 ° C \n'
    )
    expected = ' == Life ==\nThe fox\'s 1,000-year "den" (or hole); it ran, hid. 1 miles at 5.2°C\n'
    assert detokenize(page) == expected


def test_score_ids_needs_two(tiny: tuple[Model, GPT2LMHeadModel]) -> None:
    assert len(score_ids(tiny[0], [1, 2]).ids) == 1
    with pytest.raises(ValueError, match="two are needed"):
        score_ids(tiny[0], [1])


def test_published_text_has_its_articles() -> None:
    path: Path = shared_data("wikitext2") / "wiki.test.raw"
    pages = split_pages(path.read_text(encoding="utf-8"))
    assert len(pages) == 62  # as many as lm-evaluation-harness reports
