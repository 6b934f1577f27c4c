"""The likeliest next word that may end a text."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

import numpy as np

from runtime._math import log_softmax
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.scoring.context import SharedContext
from runtime.tokenization.detokenizer import REPLACEMENT

MAX_WORD_TOKENS = 8
N_CANDIDATES = 64  # first tokens to try
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def find_word(text: str) -> str:
    """The first word of a text, without the punctuation around; "" where there is none."""
    match = _WORD.search(text)
    return match[0] if match else ""


def predict_word(
    model: Model, shared: SharedContext, stop_words: Collection[str], *, begins_text: bool = False
) -> tuple[str, float]:
    """The first of the likeliest words that is no stop word, and its probability: the product over its tokens.

    The tokens that may begin a word are tried in the order of their probability, each completed greedily to a word;
    so a word counts as a whole (`the` is skipped, `theme` is not). ("", 0.0) where none of N_CANDIDATES will do.
    begins_text: there is no word before, so the first need not begin with a space.
    """
    logprobs = log_softmax(shared.logits)
    for id_ in np.argsort(-logprobs, kind="stable")[:N_CANDIDATES].tolist():
        first: str = calls.decode(model.tokenizer, [id_])
        if not first.strip() or not (begins_text or first[0].isspace()):
            continue
        word, logprob = _complete(model, shared, id_)
        if word and word.lower().replace("’", "'") not in stop_words:
            return word, math.exp(logprob + float(logprobs[id_]))
    return "", 0.0


def _complete(model: Model, shared: SharedContext, first_id: int) -> tuple[str, float]:
    """The word that begins with this token, and the log-probability of its other tokens."""
    ids, logprob, row = [first_id], 0.0, shared.begin()
    for _ in range(MAX_WORD_TOKENS - 1):
        logprobs = log_softmax(next(shared.extend(row, ids[-1:])))[0]
        id_ = int(logprobs.argmax())
        if _is_complete(model, ids, id_):
            break
        ids.append(id_)
        logprob += float(logprobs[id_])
    return find_word(calls.decode(model.tokenizer, ids)), logprob


def _is_complete(model: Model, ids: list[int], next_id: int) -> bool:
    """Whether the next token adds nothing to the word."""
    if next_id in model.config.eos_token_ids:
        return True
    word = find_word(calls.decode(model.tokenizer, ids))
    text = calls.decode(model.tokenizer, [*ids, next_id])
    return bool(word) and not text.endswith(REPLACEMENT) and find_word(text) == word
