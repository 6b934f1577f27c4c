"""Perplexity of long texts by the two protocols whose numbers are published and can be compared."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runtime._math import perplexity
from runtime.model.model import Model
from runtime.scoring.scoring import check_stride, window_log_probabilities
from runtime.tokenization.encode import beginning_of_text, encode, encode_whole

Progress = Callable[[int, int], object]  # how much is done, of how much


@dataclasses.dataclass(frozen=True)
class Rolling:
    """The log-likelihood of texts, and what it comes to a word, a byte, a token."""

    logprob: float  # natural logarithm, summed over all texts
    n_tokens: int
    n_words: int
    n_bytes: int

    @property
    def token_perplexity(self) -> float:
        """Exponential of the mean negative log-probability a token."""
        return perplexity(self.logprob, self.n_tokens)

    @property
    def word_perplexity(self) -> float:
        """The same a word: what white space separates."""
        return perplexity(self.logprob, self.n_words)

    @property
    def byte_perplexity(self) -> float:
        """The same a byte of UTF-8."""
        return perplexity(self.logprob, self.n_bytes)

    @property
    def bits_per_byte(self) -> float:
        """Mean negative log-probability a byte, to base 2."""
        return -self.logprob / self.n_bytes / math.log(2)


def measure_strided(model: Model, text: str, stride: int | None = None, progress: Progress | None = None) -> float:
    """Perplexity a token by the recipe in transformers' documentation, "Perplexity of fixed-length models".

    Windows of n_positions tokens begin every `stride` tokens (default n_positions; the published numbers are for
    1,024 and 512). A window scores what earlier ones have not, the labels shifted within it: without overlap its
    first token is not predicted. Its mean loss counts as many times as it has new tokens, less one.
    Raises ValueError for a text of fewer than two tokens or a stride outside 1 .. n_positions.
    """
    ids, size = encode_whole(model, text), model.config.n_positions
    if len(ids) < 2:
        raise ValueError(f"the text is {len(ids)} token(s) long; the first is not predicted, so two are needed")
    stride, logprob, n_counted, scored = check_stride(stride, size), 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + size, len(ids))
        n_counted_here = end - scored - 1
        if n_counted_here:  # a single new token weighs nothing, and without overlap has no loss
            logprob += n_counted_here * float(np.mean(_logprobs(model, ids[begin:end], max(0, scored - begin - 1))))
            n_counted += n_counted_here
        scored = end
        if progress:
            progress(end, len(ids))
        if end == len(ids):
            break
    return perplexity(logprob, n_counted)


def measure_rolling(
    model: Model,
    texts: Sequence[str],
    rewrite: Callable[[str], str] = lambda text: text,
    progress: Progress | None = None,
) -> Rolling:
    """lm-evaluation-harness's `loglikelihood_rolling` of several texts, and its counts of words and bytes.

    Each text begins with bos_token_id (`<|endoftext|>`). Windows of n_positions tokens are disjoint but for one
    token of context; the last one reaches back to be full. `rewrite` makes what the model reads of a text, whose
    words and bytes are counted as it was: the harness does so with WikiText.
    Raises ValueError where there is no text.
    """
    beginning = beginning_of_text(model)
    sequences = [[beginning, *encode(model, rewrite(text))] for text in texts]
    n_tokens = sum(map(len, sequences)) - len(sequences)
    if not n_tokens:
        raise ValueError("there is no text to measure")
    logprob, done = 0.0, 0
    for ids in sequences:
        for begin, skip, end in rolling_windows(len(ids) - 1, model.config.n_positions):
            logprobs = _logprobs(model, ids[begin : end + 1], skip)
            logprob += math.fsum(logprobs)
            done += len(logprobs)
            if progress:
                progress(done, n_tokens)
    n_words = sum(len(re.split(r"\s+", text)) for text in texts)
    return Rolling(logprob, n_tokens, n_words, sum(len(text.encode()) for text in texts))


def rolling_windows(n: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Windows over `n` tokens to predict: (begin, skip, end); inputs begin .. end predict all but the first skip."""
    scored = 0
    while scored < n:
        end = min(scored + size, n)
        begin = max(0, end - size)
        yield begin, scored - begin, end
        scored = end


def _logprobs(model: Model, ids: Sequence[int], skip: int) -> list[float]:
    """Of ids[skip + 1:], each given all before it."""
    logprobs: list[float] = []
    for targets, chunk in window_log_probabilities(model, ids, skip):
        logprobs += chunk[np.arange(len(targets)), targets].tolist()
    return logprobs
