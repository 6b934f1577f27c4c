"""Surprisals beside those of minicons, the tool that psycholinguists use: on the demo, in fp32."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from runtime.scoring import words
from runtime.scoring.words import Beginnings, Vocabulary, vocabulary
from tests.support import oracle

TEXTS = [
    "The old king slept in his bed and nobody came.",
    "Once upon a time there was a little mouse who isn't here any more.",
    "Unfathomable daughters ran after the ñandú",
]
CLOSE = 5e-4


@pytest.fixture(scope="module")
def scorer() -> Any:
    pytest.importorskip("minicons", reason="minicons is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from minicons.scorer import IncrementalLMScorer

        tokenizer = oracle.demo_tokenizer()
        return IncrementalLMScorer(oracle.demo(), "cpu", tokenizer=tokenizer)


@pytest.fixture
def minicons_beginnings(demo_fp32: Model) -> Iterator[None]:
    """The tokens that minicons takes for the beginning of a word: those with a space, not a line end or end of text."""
    found = vocabulary(demo_fp32)
    assert found.beginnings is not None
    mask = found.beginnings.mask.copy()
    mask[[id_ for id_ in range(len(mask)) if not found.texts[id_].startswith(" ")]] = False
    beginnings = Beginnings(mask, found.beginnings.hold_space, found.beginnings.is_space_alone)
    words._known[demo_fp32] = Vocabulary(found.texts, beginnings)
    yield
    words._known[demo_fp32] = found


def test_tokens_are_those_of_minicons(scorer: Any, demo_fp32: Model) -> None:
    rows = scorer.token_score(TEXTS, surprisal=True, base_two=True, rank=True, bos_token=True)
    for one, row in zip(runtime.surprisal(TEXTS, model=demo_fp32), rows, strict=True):
        (_, first, _), *rest = row  # <|endoftext|>, which is not scored
        assert first == 0
        assert [token.surprisal for token in one.tokens] == pytest.approx([bits for _, bits, _ in rest], abs=CLOSE)
        assert [token.rank for token in one.tokens] == [rank for _, _, rank in rest]
        names = [demo_fp32.tokenizer.id_to_token(token.id) for token in one.tokens]
        assert names == [name for name, _, _ in rest]


@pytest.mark.parametrize("bos", [True, False])
def test_tokens_without_a_beginning_of_text(scorer: Any, demo_fp32: Model, bos: bool) -> None:
    rows = scorer.token_score(TEXTS, surprisal=True, base_two=True, bos_token=bos)
    for one, row in zip(runtime.surprisal(TEXTS, model=demo_fp32, bos=bos), rows, strict=True):
        expected = [bits for _, bits in row][1:]
        assert [token.surprisal for token in one.tokens][0 if bos else 1 :] == pytest.approx(expected, abs=CLOSE)


def _word_scores(scorer: Any, *, bow_correction: bool) -> list[list[tuple[str, float]]]:
    how = {"bos_token": True, "surprisal": True, "base_two": True, "bow_correction": bow_correction}
    found: list[list[tuple[str, float]]] = [scorer.word_score_tokenized(text, str.split, **how)[0] for text in TEXTS]
    return found


def test_plain_sums_are_those_of_minicons(scorer: Any, demo_fp32: Model) -> None:
    found = runtime.surprisal(TEXTS, model=demo_fp32, word_correction=False)
    for one, row in zip(found, _word_scores(scorer, bow_correction=False), strict=True):
        assert [word.text for word in one.words] == [text for text, _ in row]
        assert [word.surprisal for word in one.words] == pytest.approx([bits for _, bits in row], abs=CLOSE)


@pytest.mark.usefixtures("minicons_beginnings")
def test_corrected_words_are_those_of_minicons(scorer: Any, demo_fp32: Model) -> None:
    for one, row in zip(
        runtime.surprisal(TEXTS, model=demo_fp32), _word_scores(scorer, bow_correction=True), strict=True
    ):
        assert [word.surprisal for word in one.words] == pytest.approx([bits for _, bits in row], abs=CLOSE)


def test_minicons_with_our_beginnings_is_what_we_have(
    scorer: Any, demo_fp32: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line ends and the end of the text end a word too."""
    found = vocabulary(demo_fp32).beginnings
    assert found is not None
    ids = [int(id_) for id_ in found.mask.nonzero()[0]]
    assert len(ids) > len(scorer.bow_subword_idx)
    monkeypatch.setattr(scorer, "bow_subwords", dict.fromkeys(range(len(found.mask)), False) | dict.fromkeys(ids, True))
    monkeypatch.setattr(scorer, "bow_subword_idx", ids)
    for one, row in zip(
        runtime.surprisal(TEXTS, model=demo_fp32), _word_scores(scorer, bow_correction=True), strict=True
    ):
        assert [word.surprisal for word in one.words] == pytest.approx([bits for _, bits in row], abs=CLOSE)
