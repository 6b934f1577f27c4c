"""The likeliest of several options: Winograd schemas, cloze tests, classification."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from runtime._checks import check_texts
from runtime._math import softmax
from runtime.model.model import Model
from runtime.scoring.scoring import Pair, Score, encode_pair

Scoring = Literal["full", "partial"]
_BLANK = re.compile(r"(?<!\w)_+(?!\w)")


def check_options(options: object) -> list[str]:
    """The options as a list. Raises TypeError or ValueError unless they are two or more different texts.

    >>> check_options(("happy", "sad"))
    ['happy', 'sad']
    """
    texts = check_texts("options", options)
    if not all(text.strip() for text in texts):
        raise TypeError(f"options is {texts!r}; texts are expected, none of them empty")
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise ValueError(f"options is {texts!r}; two or more are expected, all different")
    return texts


def split_blank(prompt: str) -> tuple[str, str | None]:
    """The text before and after the blank, which is `_` or several of them; (prompt, None) where there is no blank.

    Raises ValueError for several blanks.

    >>> split_blank("The sky is _.")
    ('The sky is ', '.')
    """
    blanks = list(_BLANK.finditer(prompt))
    if len(blanks) > 1:
        raise ValueError(f"the prompt has {len(blanks)} blanks (_ alone), and one at most can be filled: {prompt!r}")
    return (prompt[: blanks[0].start()], prompt[blanks[0].end() :]) if blanks else (prompt, None)


def option_pairs(model: Model, prompt: str, options: Sequence[str], scoring: Scoring) -> list[Pair]:
    """The context and the continuation that are scored for each option.

    "full": the option and the text after it, given the text before. "partial": the text after the option, given the
    text before and the option. Raises ValueError for partial scoring where no text follows.
    """
    before, after = split_blank(prompt)
    if after is None:
        before = before if before[-1:].isspace() or not before else f"{before} "
    if scoring == "full":
        return [encode_pair(model, before, option.lstrip() + (after or "")) for option in options]
    if scoring != "partial":
        raise ValueError(f"scoring is {scoring!r}; full or partial")
    if not (after or "").strip():
        raise ValueError("scoring 'partial' is of the text after the blank _, and there is none; use 'full'")
    return [encode_pair(model, before + option.strip(), after or "") for option in options]


def share(scores: Sequence[Score]) -> list[float]:
    """The probability of each option, given that it is one of them: the softmax of their log-probabilities."""
    logprobs = np.array([score.logprob for score in scores])
    return [float(one) for one in softmax(logprobs)]
