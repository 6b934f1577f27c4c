"""Perplexity of texts by the two protocols, against transformers' recipe and lm-evaluation-harness's windows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

import runtime
from runtime.model.model import Model
from runtime.scoring.perplexity import measure_rolling, measure_strided, rolling_windows
from runtime.scoring.wikitext import detokenize, join_lines, split_pages
from tests.conftest import DEMO, shared_data
from tests.support import oracle
from tests.support.checkpoints import TINY, build_model, open_checkpoint, write_checkpoint

STORY = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
CLOSE = 1e-4


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


@pytest.mark.parametrize("stride", [512, 256])
def test_strided_perplexity_of_wikitext_is_transformers_to_4_digits(demo_fp32: Model, stride: int) -> None:
    lines = (shared_data("wikitext2") / "wiki.test.raw").read_text(encoding="utf-8").splitlines(keepends=True)[:30]
    text = join_lines("".join(lines))
    ids = oracle.demo_tokenizer().encode(text)
    assert len(ids) > 2 * 512
    expected = _documented_perplexity(oracle.demo(), ids, stride)
    assert measure_strided(demo_fp32, text, stride) == pytest.approx(expected, rel=5e-5)


def test_rolling_windows_are_the_harness() -> None:
    """17 tokens in windows of 5: disjoint, one token of context each, the last one full."""
    ids = ["bos", *range(17)]
    windows = [(ids[begin:end], ids[end - n_new + 1 : end + 1]) for begin, end, n_new in rolling_windows(17, 5)]
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
    assert [at for _, end, n_new in windows for at in range(end - n_new, end)] == list(range(n))
    assert all(end - begin == min(size, end) for begin, end, _ in windows)


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
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {total for _, total in seen} == {101}
    assert seen[-1] == (101, 101)


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


def test_published_text_has_its_articles() -> None:
    path = shared_data("wikitext2") / "wiki.test.raw"
    pages = split_pages(path.read_text(encoding="utf-8"))
    assert len(pages) == 62  # as many as lm-evaluation-harness reports


@pytest.mark.parametrize("name", ["lmeval_rolling", "lmeval_rolling_window5"])
def test_gpt2_rolls_as_recorded_of_the_harness(name: str) -> None:
    entry = oracle.recorded(name)
    with Model(oracle.real_gpt2()) as gpt2:
        size = entry["params"].get("max_length", gpt2.config.n_positions)
        gpt2.config = dataclasses.replace(gpt2.config, n_positions=size)
        assert measure_rolling(gpt2, [entry["text"]]).logprob == pytest.approx(entry["expected"]["sum"], rel=1e-3)
